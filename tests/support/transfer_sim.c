#include "transfer_sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct simulation {
    const moelink_eplb_shape *shape;
    const moelink_eplb_transfer_params *params;
    const moelink_eplb_transfer *transfer;
    moelink_eplb_transfer_summary summary;
    int rank_slots;
    int32_t *before, *after; /* [layers, slots] as the ranks act */
    int32_t *now, *start;    /* [layers, slots], and as it was when the batch began */
    int32_t *staged;         /* [ranks * staging] */
    int32_t *staged_count;   /* [ranks] */
    int32_t *ahead;          /* [ranks] of these, for a batch that has not begun */
    uint8_t *written;        /* [layers, slots] */
    int32_t *map;            /* of a step */
    uint64_t *sent, *received; /* [ranks] [bytes] of a step */
} simulation;

static void *zeroed(size_t count, size_t bytes) {
    void *memory = calloc(count == 0 ? 1 : count, bytes);
    if (memory == NULL) abort();
    return memory;
}

__attribute__((noreturn, format(printf, 3, 4))) static void broken(const simulation *sim, const moelink_eplb_move *move, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nlayers %d, experts %d, slots %d, ranks %d, nodes %d, staging %d\n", sim->shape->layers, sim->shape->experts,
            sim->shape->slots, sim->shape->ranks, sim->shape->nodes, sim->params->staging);
    int layer = move == NULL ? 0 : move->layer;
    if (move != NULL) {
        fprintf(stderr, "move: layer %d, step %d, batch %d, round %d, kind %d, expert %d, %d -> %d\n", move->layer, move->step, move->batch,
                move->round, move->kind, move->expert, move->from, move->to);
    }
    for (int which = 0; which < 2 && sim->shape->slots <= 64; ++which) {
        fprintf(stderr, which == 0 ? "old:" : "new:");
        for (int i = 0; i < sim->shape->slots; ++i) fprintf(stderr, " %d", (which == 0 ? sim->before : sim->after)[layer * sim->shape->slots + i]);
        fprintf(stderr, "\n");
    }
    abort();
}

void acting_map(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params, int old, int32_t *out) {
    int old_ranks = params->old_ranks == 0 ? shape->ranks : params->old_ranks;
    int new_ranks = params->new_ranks == 0 ? shape->ranks : params->new_ranks;
    int width = shape->slots / shape->ranks, ranks = old ? old_ranks : new_ranks;
    const int32_t *map = old ? params->old_map : params->new_map;
    for (int64_t i = 0; i < (int64_t)shape->layers * shape->slots; ++i) out[i] = -1;
    for (int layer = 0; layer < shape->layers; ++layer) {
        for (int rank = 0; rank < ranks; ++rank) {
            int to = rank;
            if (params->rank_mapping != NULL && old && new_ranks == shape->ranks) to = params->rank_mapping[rank];
            if (params->rank_mapping != NULL && !old && new_ranks != shape->ranks) {
                for (int r = 0; r < old_ranks; ++r) {
                    if (params->rank_mapping[r] == rank) to = r;
                }
            }
            if (to < 0) continue;
            memcpy(out + (int64_t)layer * shape->slots + to * width, map + ((int64_t)layer * ranks + rank) * width,
                   sizeof *out * (size_t)width);
        }
    }
}

static int node_of(const simulation *sim, int rank) {
    return rank / (sim->shape->ranks / sim->shape->nodes);
}

static int gpu_of(const simulation *sim, int rank) {
    return sim->params->rank_gpu == NULL ? rank : sim->params->rank_gpu[rank];
}

static int hop_of(const simulation *sim, int a, int b) {
    if (a == b) return MOELINK_EPLB_HOP_RANK;
    if (gpu_of(sim, a) == gpu_of(sim, b)) return MOELINK_EPLB_HOP_GPU;
    return node_of(sim, a) == node_of(sim, b) ? MOELINK_EPLB_HOP_NODE : MOELINK_EPLB_HOP_NET;
}

static uint64_t bytes_of(const simulation *sim, int layer) {
    return sim->params->expert_bytes == NULL ? 0 : sim->params->expert_bytes[layer];
}

static int on_rank(const simulation *sim, const int32_t *map, int rank, int32_t expert) {
    for (int i = 0; i < sim->rank_slots; ++i) {
        if (map[rank * sim->rank_slots + i] == expert) return 1;
    }
    return 0;
}

static int in_layer(const simulation *sim, const int32_t *map, int32_t expert) {
    for (int i = 0; i < sim->shape->slots; ++i) {
        if (map[i] == expert) return 1;
    }
    return 0;
}

/* Experts that are new to a domain - a rank, a GPU or a node - summed over domains: what must come over hops longer than `hop`. */
static int64_t new_to_domains(const simulation *sim, int layer, int hop) {
    const int32_t *before = sim->before + (int64_t)layer * sim->shape->slots, *after = sim->after + (int64_t)layer * sim->shape->slots;
    int64_t count = 0;
    for (int rank = 0; rank < sim->shape->ranks; ++rank) {
        for (int i = 0; i < sim->rank_slots; ++i) {
            int32_t expert = after[rank * sim->rank_slots + i];
            if (expert < 0 || !in_layer(sim, before, expert)) continue;
            int counted = 0; /* there before, or counted for a slot before this one */
            for (int other = 0; other < sim->shape->ranks && !counted; ++other) {
                if (hop_of(sim, rank, other) > hop) continue;
                counted |= on_rank(sim, before, other, expert);
                for (int j = 0; j < sim->rank_slots; ++j) {
                    counted |= other * sim->rank_slots + j < rank * sim->rank_slots + i && after[other * sim->rank_slots + j] == expert;
                }
            }
            count += !counted;
        }
    }
    return count;
}

static void put_staged(simulation *sim, const moelink_eplb_move *move) {
    int rank = move->to / sim->params->staging;
    if (sim->staged[move->to] >= 0) broken(sim, move, "the staging place is in use");
    sim->staged[move->to] = move->expert;
    if (++sim->staged_count[rank] > sim->summary.staging) broken(sim, move, "more is staged than the summary says");
}

static void write_slot(simulation *sim, const moelink_eplb_move *move) {
    int64_t slot = (int64_t)move->layer * sim->shape->slots + move->to;
    if (sim->after[slot] != move->expert) broken(sim, move, "the new map has another expert there");
    if (sim->before[slot] == move->expert) broken(sim, move, "the slot had the expert already");
    if (sim->written[slot]++) broken(sim, move, "the slot is written twice");
    sim->now[slot] = move->expert;
}

static void make_transfer(simulation *sim, const moelink_eplb_move *move, int early, int64_t copies[4]) {
    int from = move->from / sim->rank_slots, to = move->to / sim->params->staging;
    int64_t base = (int64_t)move->layer * sim->shape->slots;
    if (from == to) broken(sim, move, "a transfer within a rank");
    if (sim->start[base + move->from] != move->expert) broken(sim, move, "the source does not hold the expert");
    if (on_rank(sim, sim->before + base, to, move->expert)) broken(sim, move, "the rank had the expert");
    if (!on_rank(sim, sim->after + base, to, move->expert)) broken(sim, move, "the rank does not need the expert");
    if (early) {
        --sim->ahead[to];
    } else {
        put_staged(sim, move);
    }
    ++copies[hop_of(sim, from, to)];
    sim->sent[from] += bytes_of(sim, move->layer);
    sim->received[to] += bytes_of(sim, move->layer);
}

static void make_local(simulation *sim, const moelink_eplb_move *move, int64_t copies[4]) {
    int64_t base = (int64_t)move->layer * sim->shape->slots;
    int staging = sim->params->staging;
    int from = move->kind == MOELINK_EPLB_MOVE_COMMIT ? move->from / staging : move->from / sim->rank_slots;
    int to = move->kind == MOELINK_EPLB_MOVE_SAVE ? move->to / staging : move->to / sim->rank_slots;
    if (from != to) broken(sim, move, "a local move between ranks");
    if (move->kind == MOELINK_EPLB_MOVE_COMMIT) {
        if (sim->staged[move->from] != move->expert) broken(sim, move, "the staging place does not hold the expert");
        sim->staged[move->from] = -1;
        --sim->staged_count[from];
        write_slot(sim, move);
        return;
    }
    if (sim->now[base + move->from] != move->expert) broken(sim, move, "the slot does not hold the expert");
    if (move->kind == MOELINK_EPLB_MOVE_SAVE) {
        put_staged(sim, move);
    } else {
        write_slot(sim, move);
        ++copies[MOELINK_EPLB_HOP_RANK];
    }
}

/* The staging place that a move uses, or -1. */
static int place_of(const moelink_eplb_move *move) {
    return move->kind == MOELINK_EPLB_MOVE_COPY ? -1 : move->kind == MOELINK_EPLB_MOVE_COMMIT ? move->from : move->to;
}

/* With OVERLAP: the transfers of the batch that begins here may begin before the batch before it is done. */
static int is_early(const moelink_eplb_move *moves, int64_t first, int64_t count) {
    if (moves[first].kind != MOELINK_EPLB_MOVE_TRANSFER || moves[first].batch == 0) return 0;
    for (int64_t i = first; i < count && moves[i].batch == moves[first].batch && moves[i].kind == MOELINK_EPLB_MOVE_TRANSFER; ++i) {
        for (int64_t j = first - 1; j >= 0 && moves[j].batch == moves[first].batch - 1; --j) {
            int fills = moves[j].kind == MOELINK_EPLB_MOVE_COPY || moves[j].kind == MOELINK_EPLB_MOVE_COMMIT;
            if (fills && moves[j].layer == moves[i].layer && moves[j].to == moves[i].from) return 0;
            if (place_of(&moves[j]) == moves[i].to) return 0;
        }
    }
    return 1;
}

/* The next batch's transfers, before this one's local moves: they read what is there now and are staged beside what is. */
static void begin_early(simulation *sim, const moelink_eplb_move *moves, int64_t first) {
    for (int64_t i = first; i < sim->summary.move_count && moves[i].batch == moves[first].batch; ++i) {
        const moelink_eplb_move *move = &moves[i];
        if (move->kind != MOELINK_EPLB_MOVE_TRANSFER) return;
        if (sim->now[(int64_t)move->layer * sim->shape->slots + move->from] != move->expert) broken(sim, move, "the source does not hold the expert yet");
        put_staged(sim, move);
        ++sim->ahead[move->to / sim->params->staging];
    }
}

static int nothing_staged(const simulation *sim) {
    for (int rank = 0; rank < sim->shape->ranks; ++rank) {
        if (sim->staged_count[rank] != sim->ahead[rank]) return 0;
    }
    return 1;
}

/* Slots that become empty still hold what they held; a layer whose other slots are all new has its new map in force. */
static void check_step(simulation *sim, int steps) {
    if (!nothing_staged(sim)) broken(sim, NULL, "step %d ends with something staged", steps);
    if (moelink_eplb_transfer_map(sim->transfer, steps, sim->map) != MOELINK_OK) broken(sim, NULL, "%s", moelink_last_error());
    for (int layer = 0; layer < sim->shape->layers; ++layer) {
        int64_t base = (int64_t)layer * sim->shape->slots;
        for (int i = 0; i < sim->shape->slots; ++i) {
            int32_t said = sim->map[base + i], is = sim->now[base + i];
            int lost = sim->after[base + i] >= 0 && !in_layer(sim, sim->before + base, sim->after[base + i]);
            int emptied = said == -1 && (sim->after[base + i] == -1 || lost);
            if (said != is && !emptied) broken(sim, NULL, "after step %d the map has %d in layer %d, slot %d, which holds %d", steps, said, layer, i, is);
            int done = said == sim->after[base + i] || lost;
            if (steps == sim->summary.steps && !done) broken(sim, NULL, "layer %d, slot %d is not done", layer, i);
            if (!lost && sim->after[base + i] >= 0 && !in_layer(sim, sim->map + base, sim->after[base + i])) {
                broken(sim, NULL, "after step %d, layer %d has no copy of expert %d", steps, layer, sim->after[base + i]);
            }
        }
    }
}

static int same_copies(const int64_t *a, const int64_t *b) {
    return memcmp(a, b, sizeof *a * MOELINK_EPLB_HOPS) == 0;
}

static void run(simulation *sim, const moelink_eplb_move *moves) {
    const moelink_eplb_shape *shape = sim->shape;
    int64_t copies[MOELINK_EPLB_HOPS] = {0};
    int *sends = zeroed((size_t)shape->ranks, sizeof *sends), *receives = zeroed((size_t)shape->ranks, sizeof *receives);
    uint8_t *arrived = zeroed((size_t)shape->ranks * (size_t)shape->experts, 1);
    int batch = -1, round = -1, batch_start = 0, layer = -1, parts = 0, open_batches = 0, early_batches = 0;
    int overlap = (sim->params->flags & MOELINK_EPLB_TRANSFER_F_OVERLAP) != 0 && sim->params->staging > 1;
    int places = overlap ? sim->params->staging / 2 : sim->params->staging;
    int early = 0, begun = -1; /* whether this batch's transfers were begun before it; the batch that was last begun so */
    check_step(sim, 0);
    int step = 0;
    for (int64_t i = 0; i <= sim->summary.move_count; ++i) {
        const moelink_eplb_move *move = i < sim->summary.move_count ? &moves[i] : NULL;
        if (move == NULL || move->batch != batch) {
            if (nothing_staged(sim) && batch >= 0) ++parts;
            if (!nothing_staged(sim)) ++open_batches;
            if (move != NULL && move->batch < batch) broken(sim, move, "batches out of order");
            batch = move == NULL ? batch : move->batch;
            early = batch == begun;
            early_batches += move != NULL && overlap && is_early(moves, i, sim->summary.move_count);
            memcpy(sim->start, sim->now, sizeof *sim->now * (size_t)shape->layers * (size_t)shape->slots);
            batch_start = round + 1;
        }
        while (move == NULL ? step < sim->summary.steps : step < move->step) {
            for (int rank = 0; rank < shape->ranks; ++rank) {
                uint64_t most = sim->sent[rank] > sim->received[rank] ? sim->sent[rank] : sim->received[rank];
                if (sim->params->step_bytes > 0 && most > sim->params->step_bytes && parts > 1) broken(sim, move, "step %d is over its bytes", step);
                sim->sent[rank] = sim->received[rank] = 0;
            }
            check_step(sim, ++step);
            parts = 0;
        }
        if (move == NULL) break;
        if (move->layer != layer) memset(arrived, 0, (size_t)shape->ranks * (size_t)shape->experts);
        if (move->layer < layer) broken(sim, move, "layers out of order");
        layer = move->layer;
        if (move->kind != MOELINK_EPLB_MOVE_TRANSFER) {
            if (move->round != -1) broken(sim, move, "a local move has a round");
            if (overlap && (i == 0 || moves[i - 1].batch != batch || moves[i - 1].kind == MOELINK_EPLB_MOVE_TRANSFER)) {
                int64_t next = i;
                while (next < sim->summary.move_count && moves[next].batch == batch) ++next;
                if (next < sim->summary.move_count && moves[next].batch == batch + 1 && is_early(moves, next, sim->summary.move_count)) {
                    begin_early(sim, moves, next);
                    begun = batch + 1;
                }
            }
            make_local(sim, move, copies);
            continue;
        }
        if (move->round != round) {
            if (move->round != round + 1) broken(sim, move, "rounds are not counted through");
            round = move->round;
            memset(sends, 0, sizeof *sends * (size_t)shape->ranks);
            memset(receives, 0, sizeof *receives * (size_t)shape->ranks);
        }
        if (round - batch_start >= places) broken(sim, move, "more rounds in a batch than staging places");
        int to = move->to / sim->params->staging;
        if (sends[move->from / sim->rank_slots]++ || receives[to]++) broken(sim, move, "a rank has two transfers in a round");
        if (arrived[(size_t)to * (size_t)shape->experts + (size_t)move->expert]++) broken(sim, move, "the rank receives the expert twice");
        make_transfer(sim, move, early, copies);
    }
    if (round + 1 != sim->summary.rounds) broken(sim, NULL, "%d rounds, not %d", round + 1, sim->summary.rounds);
    if (early_batches != sim->summary.early_batches) broken(sim, NULL, "%d batches may begin early", early_batches);
    if (open_batches != sim->summary.open_batches) broken(sim, NULL, "%d batches are open at their end", open_batches);
    if (!same_copies(copies, sim->summary.copies)) broken(sim, NULL, "copies are not those of the summary");
    free(sends);
    free(receives);
    free(arrived);
}

static void check_counts(simulation *sim) {
    const moelink_eplb_shape *shape = sim->shape;
    int64_t new_to[MOELINK_EPLB_HOPS] = {0}, lost = 0, changed = 0, least = 0;
    for (int layer = 0; layer < shape->layers; ++layer) {
        const int32_t *before = sim->before + (int64_t)layer * shape->slots, *after = sim->after + (int64_t)layer * shape->slots;
        for (int hop = 0; hop < MOELINK_EPLB_HOP_NET; ++hop) new_to[hop] += new_to_domains(sim, layer, hop);
        int most = 0, differs = 0;
        for (int rank = 0; rank < shape->ranks; ++rank) {
            int received = 0;
            for (int i = 0; i < sim->rank_slots; ++i) {
                int32_t expert = after[rank * sim->rank_slots + i];
                int unknown = expert >= 0 && !in_layer(sim, before, expert);
                lost += unknown;
                differs |= (unknown ? -1 : expert) != before[rank * sim->rank_slots + i];
                int again = 0;
                for (int j = 0; j < i; ++j) again |= after[rank * sim->rank_slots + j] == expert;
                received += expert >= 0 && !unknown && !again && !on_rank(sim, before, rank, expert);
            }
            most = received > most ? received : most;
        }
        least += most;
        changed += differs;
    }
    const int64_t *copies = sim->summary.copies;
    if (copies[1] + copies[2] + copies[3] != new_to[0]) broken(sim, NULL, "%lld transfers are needed", (long long)new_to[0]);
    if (copies[2] + copies[3] != new_to[1]) broken(sim, NULL, "%lld transfers between GPUs are needed", (long long)new_to[1]);
    if (copies[3] != new_to[2]) broken(sim, NULL, "%lld transfers between nodes are needed", (long long)new_to[2]);
    if (sim->summary.lost != lost) broken(sim, NULL, "%lld slots are lost", (long long)lost);
    if (sim->summary.changed_layers != changed) broken(sim, NULL, "%lld layers change", (long long)changed);
    if (sim->summary.least_rounds != least) broken(sim, NULL, "at least %lld rounds are needed", (long long)least);
    if (sim->summary.staging > sim->params->staging) broken(sim, NULL, "the staging is too small");
    int overlap = (sim->params->flags & MOELINK_EPLB_TRANSFER_F_OVERLAP) != 0 && sim->params->staging > 1;
    if ((overlap ? sim->params->staging / 2 : sim->params->staging) >= sim->rank_slots && sim->summary.open_batches > 0) broken(sim, NULL, "a ring is open without need");
}

void expect_good_transfer(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params, moelink_eplb_transfer_summary *out) {
    simulation sim = {.shape = shape, .params = params, .summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT, .rank_slots = shape->slots / shape->ranks};
    size_t all = (size_t)shape->layers * (size_t)shape->slots, ranks = (size_t)shape->ranks;
    moelink_eplb_transfer *transfer = NULL;
    const moelink_eplb_move *moves = NULL;
    sim.before = zeroed(all, sizeof *sim.before);
    sim.after = zeroed(all, sizeof *sim.after);
    sim.now = zeroed(all, sizeof *sim.now);
    sim.start = zeroed(all, sizeof *sim.start);
    sim.map = zeroed(all, sizeof *sim.map);
    sim.written = zeroed(all, 1);
    sim.staged = zeroed(ranks * (size_t)params->staging, sizeof *sim.staged);
    sim.staged_count = zeroed(ranks, sizeof *sim.staged_count);
    sim.ahead = zeroed(ranks, sizeof *sim.ahead);
    sim.sent = zeroed(ranks, sizeof *sim.sent);
    sim.received = zeroed(ranks, sizeof *sim.received);
    acting_map(shape, params, 1, sim.before);
    acting_map(shape, params, 0, sim.after);
    memcpy(sim.now, sim.before, all * sizeof *sim.now);
    memset(sim.staged, 0xff, ranks * (size_t)params->staging * sizeof *sim.staged);

    if (moelink_eplb_transfer_create(shape, params, &transfer) != MOELINK_OK) broken(&sim, NULL, "%s", moelink_last_error());
    sim.transfer = transfer;
    if (moelink_eplb_transfer_summarize(transfer, &sim.summary) != MOELINK_OK || moelink_eplb_transfer_moves(transfer, &moves) != MOELINK_OK) {
        broken(&sim, NULL, "%s", moelink_last_error());
    }
    check_counts(&sim);
    run(&sim, moves);
    if (out != NULL) *out = sim.summary;
    moelink_eplb_transfer_destroy(transfer);
    void *all_memory[] = {sim.before, sim.after, sim.now, sim.start, sim.map, sim.written, sim.staged, sim.staged_count, sim.ahead, sim.sent, sim.received};
    for (size_t i = 0; i < sizeof all_memory / sizeof *all_memory; ++i) free(all_memory[i]);
}
