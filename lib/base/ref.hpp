// Reference counts: an object keeps what it was made from alive, so any order of destruction is safe.
#pragma once

#include <atomic>
#include <utility>

namespace moelink {

class Referenced {
public:
    Referenced() = default;
    Referenced(const Referenced &) = delete;
    Referenced &operator=(const Referenced &) = delete;

    void retain() noexcept { count_.fetch_add(1, std::memory_order_relaxed); }
    // For tables of objects that are not kept alive by them: false when the object is on its way out.
    bool retain_if_alive() noexcept {
        int count = count_.load(std::memory_order_relaxed);
        while (count > 0 && !count_.compare_exchange_weak(count, count + 1, std::memory_order_relaxed)) {
        }
        return count > 0;
    }
    void release() noexcept {
        if (count_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
    }

protected:
    virtual ~Referenced() = default;

private:
    std::atomic<int> count_{1};
};

// Owns one reference.
template <class T>
class Ref {
public:
    Ref() = default;
    static Ref adopt(T *object) noexcept {
        Ref ref;
        ref.object_ = object;
        return ref;
    }
    static Ref share(T *object) noexcept {
        if (object != nullptr) object->retain();
        return adopt(object);
    }
    Ref(const Ref &other) noexcept : object_(other.object_) {
        if (object_ != nullptr) object_->retain();
    }
    Ref(Ref &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref &operator=(Ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() {
        if (object_ != nullptr) object_->release();
    }
    T *get() const noexcept { return object_; }
    T *operator->() const noexcept { return object_; }
    T &operator*() const noexcept { return *object_; }
    explicit operator bool() const noexcept { return object_ != nullptr; }
    T *detach() noexcept { return std::exchange(object_, nullptr); }

private:
    T *object_ = nullptr;
};

}  // namespace moelink
