// Lists of slots, one for each expert, in one array: most have one or two slots.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

class SlotLists {
public:
    // capacities [experts] are the most slots that a list will have.
    explicit SlotLists(std::span<const int> capacities) : lists_(capacities.size()) {
        int32_t begin = 0;
        for (size_t expert = 0; expert < lists_.size(); ++expert) {
            lists_[expert].begin = begin;
            begin += capacities[expert];
        }
        slots_.resize(size_t(begin));
    }

    std::span<const int> operator[](int32_t expert) const {
        const List &list = lists_[size_t(expert)];
        return {slots_.data() + list.begin, size_t(list.size)};
    }
    void add(int32_t expert, int slot) {
        List &list = lists_[size_t(expert)];
        slots_[size_t(list.begin + list.size++)] = slot;
    }
    // The others keep their order.
    void remove(int32_t expert, int slot) {
        List &list = lists_[size_t(expert)];
        int *begin = slots_.data() + list.begin, *end = begin + list.size;
        int *found = std::find(begin, end, slot);
        std::copy(found + 1, end, found);
        --list.size;
    }
    void clear(int32_t expert) { lists_[size_t(expert)].size = 0; }

private:
    struct List {
        int32_t begin = 0;
        int32_t size = 0;
    };
    std::vector<List> lists_;
    std::vector<int> slots_;
};

}  // namespace moelink::eplb
