// A CUDA driver in host memory, for unit tests of what calls the driver. All ranks live in one process, a thread each. It
// counts calls and what is outstanding, and makes chosen calls fail. Device memory is host memory, so tests can look at it. Copies
// of cuMemcpyAsync and cuMemcpy2DAsync are put off until something waits for them.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <string>

namespace fake {

constexpr uint64_t granule = 64 << 10;  // [bytes] of its virtual memory

struct Machine {
    int devices = 4;
    int capability = 90;
    bool fabric_attribute = true;
    bool posix_fd_attribute = true;
    bool peers = true;  // devices reach each other
};

// Starts afresh and becomes what moelink::cuda() gives.
void install(const Machine &machine = {});
void uninstall();  // what is outstanding is given back

// Calls of this thread count as this rank's from now on.
void act_as(int rank);

// Makes call number `number` (1, 2, ...; 0: every one) of a function by this rank fail. Functions have the names of the
// members of moelink::CudaDriver; mem_create, mem_export and mem_import end in ":fabric" or ":fd" for the kind of handle.
void fail_call(int rank, const std::string &function, int number, CUresult result);

// How often a rank called each function since install().
std::map<std::string, int> calls(int rank);

struct Outstanding {
    int contexts = 0;
    int handles = 0;
    int pages = 0;  // physical allocations
    int reservations = 0;
    int mappings = 0;
    int allocations = 0;
    int opened = 0;  // IPC
    int streams = 0;
    int pinned = 0;
    int events = 0;
    int pushed = 0;   // contexts pushed and not popped, of all threads
    int misuses = 0;  // what a driver would refuse: double frees, wrong sizes, ...
    int early = 0;    // IPC memory freed while a peer had it open
    bool none() const {
        int held = contexts + handles + pages + reservations + mappings + allocations + opened + streams + pinned + events;
        return held + pushed + misuses + early == 0;
    }
};
Outstanding outstanding();
std::string text(const Outstanding &outstanding);

}  // namespace fake
