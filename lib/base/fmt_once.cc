// The definitions of the fmt library, compiled here once, so that the library needs no libfmt.so at run time.
// The build proves beforehand that this works with the fmt that it found, and leaves this file out where it does not.
#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
namespace detail {
template FMT_API auto thousands_sep_impl<char>(locale_ref) -> thousands_sep_result<char>;
template FMT_API auto decimal_point_impl(locale_ref) -> char;
template FMT_API auto dragonbox::to_decimal(float) noexcept -> dragonbox::decimal_fp<float>;
template FMT_API auto dragonbox::to_decimal(double) noexcept -> dragonbox::decimal_fp<double>;
template FMT_API void buffer<char>::append(const char *, const char *);
}  // namespace detail
FMT_END_NAMESPACE
