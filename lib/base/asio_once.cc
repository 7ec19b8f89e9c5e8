// The definitions of Asio, compiled here once instead of in every file that includes it (ASIO_SEPARATE_COMPILATION).
#include <asio/impl/src.hpp>
