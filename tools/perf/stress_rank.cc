#include "stress_rank.hpp"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "session.hpp"
#include "stress_chapter.hpp"

namespace perf {

namespace {

constexpr int stretches_on_cuda = 100;
constexpr int stretches_on_host = 4;

std::string describe(const StressRecord &record) {
    const std::string pair = fmt::format("pair {} of slot {}", record.sequence, record.slot);
    const auto row = [&] { return fmt::format("token {} of rank {}", record.token, record.source); };
    switch (record.fault) {
        case StressFault::count:
            return fmt::format("{}: {} rows from rank {}, must be {}", pair, record.got, record.source, record.wanted);
        case StressFault::id:
            return fmt::format("{}: id {} of {} is {}, must be {}", pair, record.column, row(), static_cast<int32_t>(record.got),
                               static_cast<int32_t>(record.wanted));
        case StressFault::empty_id:
            return fmt::format("{}: id {} of empty row {} from rank {} is {}, must be {}", pair, record.column, record.token, record.source,
                               static_cast<int32_t>(record.got), static_cast<int32_t>(record.wanted));
        case StressFault::weight:
            return fmt::format("{}: weight {} of {} has bits {:#x}, must be {:#x}", pair, record.column, row(), record.got, record.wanted);
        case StressFault::payload:
            return fmt::format("{}: word {} of payload {} of {} is {:#010x}, must be {:#010x}", pair, record.column, record.payload, row(),
                               record.got, record.wanted);
        case StressFault::output:
            return fmt::format("{}: value {} of the sum of token {} has bits {:#x}, must be {:#x}", pair, record.column, record.token, record.got,
                               record.wanted);
        default: return pair;
    }
}

// What all ranks did.
struct Totals {
    uint64_t rows = 0;
    uint64_t bytes = 0;
    uint64_t wrong = 0;

    void add(const Totals &other) {
        rows += other.rows;
        bytes += other.bytes;
        wrong += other.wrong;
    }
};

class StressRun {
public:
    StressRun(const StressOptions &options, const Session &session, Channel &channel)
        : options_(options),
          session_(session),
          channel_(channel),
          steps_(session.on_cuda() ? stress_steps_cuda() : stress_steps_host()),
          began_(std::chrono::steady_clock::now()) {
        steps_.load();
    }

    uint64_t run() {
        for (uint64_t chapter = 0; !over_; ++chapter) {
            run_chapter(chapter);
        }
        return before_.wrong + now_.wrong;
    }

private:
    void run_chapter(uint64_t number) {
        channel_.send({{"at", fmt::format("beginning chapter {}", number)}});
        StressChapter chapter(session_, options_, steps_, mix(options_.seed, number));
        const std::string name = fmt::format("chapter {}: {}", number, chapter.geometry().describe());
        channel_.send({{"at", name}});
        const int stretches = session_.on_cuda() ? stretches_on_cuda : stretches_on_host;
        for (int i = 0; i < stretches && !over_; ++i) {
            pairs_ += chapter.stretch();
            const StressResult result = chapter.result();
            for (uint64_t w = 0; w < std::min<uint64_t>(result.wrong, stress_records); ++w) {
                channel_.send({{"wrong", fmt::format("{}: {}", name, describe(result.records[w]))}});
            }
            now_ = {};
            for (const Totals &one : session_.gather(Totals{result.rows, result.bytes, result.wrong})) {
                now_.add(one);
            }
            report(number + 1);
            over_ = agree_to_end();
        }
        session_.barrier();  // no peer still writes
        if (!over_) {
            before_.add(now_);
            now_ = {};
        }
    }

    // From rank 0, whose clock decides.
    bool agree_to_end() const {
        int32_t end = now_.wrong > 0 || (options_.pairs > 0 && pairs_ >= options_.pairs) || seconds() >= options_.seconds ? 1 : 0;
        must(moelink_group_broadcast(session_.group(), &end, sizeof end, 0), "moelink_group_broadcast");
        return end != 0;
    }

    double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count(); }

    void report(uint64_t chapters) const {
        if (session_.rank() == 0) {
            channel_.send({{"progress",
                            {{"chapters", chapters},
                             {"pairs", pairs_},
                             {"rows", before_.rows + now_.rows},
                             {"bytes", before_.bytes + now_.bytes},
                             {"wrong", before_.wrong + now_.wrong},
                             {"seconds", seconds()}}}});
        }
    }

    const StressOptions &options_;
    const Session &session_;
    Channel &channel_;
    StressSteps steps_;
    std::chrono::steady_clock::time_point began_;
    int64_t pairs_ = 0;
    Totals before_;  // chapters that are over
    Totals now_;     // the present chapter
    bool over_ = false;
};

}  // namespace

void run_stress_rank(const StressOptions &options, const Join &join, Channel &channel) {
    PairOptions pair;
    static_cast<RunOptions &>(pair) = options;
    pair.provider = options.provider;
    pair.experts = 1;
    channel.send({{"at", "joining the group"}});
    Session session(pair, join());
    session.introduce(channel);
    session.finish(channel, StressRun(options, session, channel).run());
}

}  // namespace perf
