#include "eplb/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace moelink::eplb {

void for_each_layer(int layers, int threads, const std::function<void(int layer)> &body) {
    if (threads == 0) threads = int(std::max(1u, std::thread::hardware_concurrency()));
    threads = std::min(threads, layers);

    std::atomic<int> next{0};
    std::mutex mutex;
    std::exception_ptr problem;
    int failed = layers;  // the first layer that did, whichever thread was first
    auto work = [&] {
        for (int layer = next++; layer < layers; layer = next++) {
            try {
                body(layer);
            } catch (...) {
                std::lock_guard lock(mutex);
                if (layer < failed) {
                    failed = layer;
                    problem = std::current_exception();
                }
                next = layers;
            }
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(size_t(threads - 1));
    for (int i = 1; i < threads; ++i) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error &) {
            break;  // no more threads to be had: those that run do all of it
        }
    }
    work();
    for (std::thread &helper : helpers) helper.join();
    if (problem) std::rethrow_exception(problem);
}

}  // namespace moelink::eplb
