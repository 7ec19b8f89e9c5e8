// The one wall between C++ and the C ABI: runs a body, maps whatever it throws to a status and a last-error text.
#pragma once

#include "base/error.hpp"
#include "base/log.hpp"

#include <new>
#include <system_error>

namespace moelink {

moelink_status guard_failed(const char *call, moelink_status status, const char *text) noexcept;

// body returns void (then the status is OK) or a moelink_status.
template <class Body>
moelink_status guard(const char *call, Body &&body) noexcept {
    try {
        if constexpr (std::is_void_v<decltype(body())>) {
            body();
            return MOELINK_OK;
        } else {
            return body();
        }
    } catch (const Error &error) {
        return guard_failed(call, error.status(), error.what());
    } catch (const std::bad_alloc &) {
        return guard_failed(call, MOELINK_ERR_OUT_OF_MEMORY, "host memory is exhausted");
    } catch (const std::exception &error) {
        return guard_failed(call, MOELINK_ERR_INTERNAL, error.what());
    } catch (...) {
        return guard_failed(call, MOELINK_ERR_INTERNAL, "an unknown exception");
    }
}

// How one rank's part of a collective call went, to be told to the others before anybody goes on.
struct Outcome {
    moelink_status status = MOELINK_OK;
    std::string text;
    bool secondhand = false;  // only what this rank saw of another's failure, whose own reason says more
};

template <class Body>
Outcome attempt(Body &&body) {
    try {
        body();
        return {};
    } catch (const Error &error) {
        return {error.status(), error.text()};
    } catch (const std::bad_alloc &) {
        return {MOELINK_ERR_OUT_OF_MEMORY, "host memory is exhausted"};
    } catch (const std::exception &error) {
        return {MOELINK_ERR_INTERNAL, error.what()};
    }
}

template <class T>
T *not_null(T *pointer, const char *name) {
    if (pointer == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is NULL", name);
    return pointer;
}

}  // namespace moelink
