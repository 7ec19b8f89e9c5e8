// Streams: copies and fills are done when their stream is waited for, or an event behind them is asked for twice.
#include "fake_state.hpp"

#include <algorithm>
#include <cstring>

namespace fake {

void advance(Lane lane, size_t copies) {
    std::deque<std::function<void()>> &pending = state->pending[lane];
    for (size_t i = 0; i < copies && !pending.empty(); ++i) {
        pending.front()();
        pending.pop_front();
        for (auto &[event, waiting] : state->events) {
            if (waiting.lane == lane && waiting.copies > 0) --waiting.copies;
        }
    }
}

namespace {

// A fill on another stream may come before what uses the memory, or after it.
bool races(CUdeviceptr at, size_t size, CUstream stream) {
    return std::any_of(state->fills.begin(), state->fills.end(), [&](const auto &entry) {
        const auto &[begin, fill] = entry;
        return begin < at + size && at < begin + fill.size && fill.lane != lane_of(stream);
    });
}
CUresult fill_async(CUdeviceptr at, unsigned char value, size_t size, CUstream stream) {
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    state->fills[at] = Fill{size, lane_of(stream)};
    state->pending[lane_of(stream)].push_back([=] {
        std::memset(reinterpret_cast<void *>(at), value, size);
        state->fills.erase(at);
    });
    return CUDA_SUCCESS;
}
CUresult copy_async(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER("copy_async");
    if (races(to, size, stream) || races(from, size, stream)) misuse(CUDA_SUCCESS);
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    state->pending[lane_of(stream)].push_back([=] { std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), size); });
    return CUDA_SUCCESS;
}
CUresult copy_2d_async(const CUDA_MEMCPY2D *given, CUstream stream) {
    ENTER("copy_2d_async");
    const CUDA_MEMCPY2D copy = *given;
    const bool unified = copy.srcMemoryType == CU_MEMORYTYPE_UNIFIED && copy.dstMemoryType == CU_MEMORYTYPE_UNIFIED;
    if (!has_context() || !unified || copy.srcPitch < copy.WidthInBytes || copy.dstPitch < copy.WidthInBytes) {
        return misuse(CUDA_ERROR_INVALID_VALUE);
    }
    state->pending[lane_of(stream)].push_back([=] {
        for (size_t row = 0; row < copy.Height; ++row) {
            std::memcpy(reinterpret_cast<void *>(copy.dstDevice + row * copy.dstPitch),
                        reinterpret_cast<const void *>(copy.srcDevice + row * copy.srcPitch), copy.WidthInBytes);
        }
    });
    return CUDA_SUCCESS;
}
CUresult event_create(CUevent *event, unsigned) {
    ENTER("event_create");
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    *event = reinterpret_cast<CUevent>(++state->next);
    state->events[*event] = Event{{}, 0, true};
    ++state->count.events;
    return CUDA_SUCCESS;
}
CUresult event_destroy(CUevent event) {
    ENTER("event_destroy");
    if (state->events.erase(event) == 0) return misuse(CUDA_ERROR_INVALID_HANDLE);
    --state->count.events;
    return CUDA_SUCCESS;
}
CUresult event_record(CUevent event, CUstream stream) {
    ENTER("event_record");
    if (state->events.count(event) == 0) return misuse(CUDA_ERROR_INVALID_HANDLE);
    state->events[event] = Event{lane_of(stream), state->pending[lane_of(stream)].size(), false};
    return CUDA_SUCCESS;
}
CUresult event_query(CUevent event) {
    ENTER("event_query");
    auto found = state->events.find(event);
    if (found == state->events.end()) return misuse(CUDA_ERROR_INVALID_HANDLE);
    if (!std::exchange(found->second.asked, true)) return CUDA_ERROR_NOT_READY;
    advance(found->second.lane, found->second.copies);
    return CUDA_SUCCESS;
}
CUresult stream_wait_event(CUstream stream, CUevent event, unsigned) {
    ENTER("stream_wait_event");
    auto found = state->events.find(event);
    if (found == state->events.end()) return misuse(CUDA_ERROR_INVALID_HANDLE);
    auto point = reinterpret_cast<CUevent>(++state->next);  // the caller may destroy its own before the stream has come here
    state->events[point] = found->second;
    state->pending[lane_of(stream)].push_back([point] {
        const Event awaited = state->events.at(point);
        state->events.erase(point);
        advance(awaited.lane, awaited.copies);
    });
    return CUDA_SUCCESS;
}
CUresult copy_to_device(CUdeviceptr to, const void *from, size_t size) {
    ENTER("copy_to_device");
    std::memcpy(reinterpret_cast<void *>(to), from, size);
    return CUDA_SUCCESS;
}
CUresult memset_d8(CUdeviceptr at, unsigned char value, size_t size) {
    ENTER("memset_d8");
    return fill_async(at, value, size, nullptr);
}

CUresult stream_create(CUstream *stream, unsigned) {
    ENTER("stream_create");
    if (!has_context()) return misuse(CUDA_ERROR_INVALID_CONTEXT);
    *stream = reinterpret_cast<CUstream>(++state->next);
    ++state->count.streams;
    return CUDA_SUCCESS;
}
CUresult stream_destroy(CUstream stream) {
    ENTER("stream_destroy");
    advance(lane_of(stream), state->pending[lane_of(stream)].size());
    --state->count.streams;
    return CUDA_SUCCESS;
}
CUresult stream_synchronize(CUstream stream) {
    ENTER("stream_synchronize");
    advance(lane_of(stream), state->pending[lane_of(stream)].size());
    return CUDA_SUCCESS;
}
CUresult memset_d8_async(CUdeviceptr at, unsigned char value, size_t size, CUstream stream) {
    ENTER("memset_d8_async");
    return fill_async(at, value, size, stream);
}
CUresult copy_to_host_async(void *to, CUdeviceptr from, size_t size, CUstream) {
    ENTER("copy_to_host_async");
    std::memcpy(to, reinterpret_cast<const void *>(from), size);
    return CUDA_SUCCESS;
}

}  // namespace

void add_streams(moelink::CudaDriver &table) {
#define HAVE(member) table.member = member
    HAVE(stream_create);
    HAVE(stream_destroy);
    HAVE(stream_synchronize);
    HAVE(memset_d8_async);
    HAVE(copy_to_host_async);
    HAVE(copy_async);
    HAVE(copy_2d_async);
    HAVE(event_create);
    HAVE(event_destroy);
    HAVE(event_record);
    HAVE(event_query);
    HAVE(stream_wait_event);
    HAVE(copy_to_device);
    HAVE(memset_d8);
#undef HAVE
}

}  // namespace fake
