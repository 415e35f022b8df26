// The thread pool and whole steps of a small decoder, for the sanitizers (thread: races; address, undefined: bounds).
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "decoder.h"
#include "small_model.h"

using namespace oag;

namespace {

constexpr ModelSize kSize;

// All logits and the sampled tokens of a step.
struct Outcome {
  std::vector<float> logits;
  std::vector<int32_t> tokens;
  bool operator==(const Outcome& other) const {
    return tokens == other.tokens &&
           std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
  }
};

Outcome run_step(Decoder& decoder, const StepRows& rows) {
  StepArrays arrays(kSize, rows, true);
  decoder.step(arrays.input, arrays.output);
  for (int32_t count : arrays.num_sampled) CHECK(count == 1);
  return {arrays.logits, arrays.sampled};
}

// A prompt in chunks up to a context that is split over threads, single tokens, and two rows at once.
std::vector<Outcome> run_all(Decoder& decoder) {
  std::vector<Outcome> outcomes;
  for (int32_t first = 0; first < 600; first += 100) outcomes.push_back(run_step(decoder, {{first, 100}}));
  for (int32_t first = 600; first < 604; ++first) outcomes.push_back(run_step(decoder, {{first, 1}}));
  outcomes.push_back(run_step(decoder, {{604, 1}, {0, 40}}));
  outcomes.push_back(run_step(decoder, {{605, 1}, {40, 1}}));
  return outcomes;
}

constexpr Form kForms[] = {{WeightFormat::kF32, WeightFormat::kF32, 0, true, 0, KvFormat::kF32},
                           {WeightFormat::kBf16, WeightFormat::kBf16, 0, false, 300},
                           {WeightFormat::kInt8, WeightFormat::kInt8, 0, true, 0},
                           {WeightFormat::kInt4, WeightFormat::kInt8, 64, false, 0},
                           {WeightFormat::kInt8, WeightFormat::kInt8, 0, true, 0, KvFormat::kInt8},
                           {WeightFormat::kInt4, WeightFormat::kInt8, 64, false, 300, KvFormat::kInt8},
                           {WeightFormat::kInt8, WeightFormat::kInt8, 0, false, 0, KvFormat::kFp8}};

}  // namespace

TEST(decoder_steps_do_not_depend_on_threads) {
  for (const Form& form : kForms) {
    Model one = make_model(kSize, form, 1), three = make_model(kSize, form, 3);
    CHECK(run_all(*one.decoder) == run_all(*three.decoder));
  }
}

// A step's logits do not depend on what the pool and the workspace gave back and took again before it; blocks and
// scratch that are not theirs any more cannot be touched unseen, as these pages have no memory or no access.
TEST(decoder_steps_do_not_depend_on_resizes) {
  for (const Form& form : kForms) {
    Model whole = make_model(kSize, form, 2), resized = make_model(kSize, form, 2);
    constexpr int64_t kAllBlocks = kSize.rows * kSize.table_width;
    for (int32_t first = 0; first < 200; first += 50) {
      const Outcome expected = run_step(*whole.decoder, {{first, 50}});
      resized.kv->resize(4 * (first / 50 + 1));
      resized.decoder->limit_step_tokens(50);
      CHECK(resized.kv->allocated_bytes() < whole.kv->allocated_bytes());
      CHECK(resized.kv->resident_bytes() <= resized.kv->allocated_bytes());
      CHECK(run_step(*resized.decoder, {{first, 50}}) == expected);
      resized.decoder->limit_step_tokens(1);
      resized.kv->resize(kAllBlocks);
      resized.decoder->limit_step_tokens(128);
    }
    CHECK(run_step(*resized.decoder, {{200, 100}, {0, 20}}) == run_step(*whole.decoder, {{200, 100}, {0, 20}}));
    CHECK(resized.decoder->workspace_bytes_of(128) == resized.decoder->workspace_bytes());
  }
}

TEST(kv_pool_copies_and_resizes_within_its_addresses) {
  KvPool pool(6, 3000, 6000, 12);
  CHECK(pool.num_slabs() == 3 && pool.max_blocks() == 12);
  pool.touch();
  std::memset(pool.block(5), 7, pool.block_bytes());
  pool.copy(5, 0);
  CHECK(pool.resize(1) > 0);
  CHECK(pool.block(0)[0] == 7 && pool.block(0)[2999] == 7);
  CHECK(pool.resize(12) == 0);
  CHECK(pool.block(11)[2999] == 0 && pool.block(0)[2999] == 7);
  for (int64_t wrong : {int64_t{0}, int64_t{13}, int64_t{-1}}) {
    bool refused = false;
    try {
      pool.resize(wrong);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused && pool.num_blocks() == 12);
  }
}

TEST(decoder_steps_do_not_depend_on_where_weights_are) {
  for (const Form& form : kForms) {
    Model memory = make_model(kSize, form, 1);
    const auto expected = run_all(*memory.decoder);
    for (const unsigned disk_layers : {1u, 2u, 3u})
      for (const int num_threads : {1, 3}) {
        PackedWeights file;
        Model disk = make_model(kSize, form, num_threads, &file, disk_layers);
        CHECK(run_all(*disk.decoder) == expected);
      }
  }
}

TEST(decoder_steps_end_where_weights_cannot_be_read_and_later_ones_pass) {
  for (const int num_threads : {1, 3}) {
    PackedWeights file;
    Model model = make_model(kSize, kForms[2], num_threads, &file, 2u);
    const auto expected = run_all(*model.decoder);
    const StreamedMatrix& last = file.order.back();
    const std::vector<uint8_t> zeros(last.num_bytes);
    std::vector<uint8_t> good(last.num_bytes);
    const StreamSource source = file.source(1);
    CHECK(pread(source.descriptor.number(), good.data(), good.size(), static_cast<off_t>(last.file_begin)) ==
          static_cast<ssize_t>(good.size()));
    file.write(last.file_begin, zeros.data(), zeros.size());
    int num_failed = 0;
    for (int32_t step = 0; step < 4; ++step) {
      try {
        run_step(*model.decoder, {{step, 1}});
      } catch (const StreamError&) {
        ++num_failed;
      }
    }
    CHECK(num_failed >= 3);  // the first may have what was read ahead
    file.write(last.file_begin, good.data(), good.size());
    CHECK(run_all(*model.decoder) == expected);
  }
}

TEST(decoder_heartbeat_can_be_watched_from_another_thread) {
  Model model = make_model(kSize, kForms[2], 2);
  constexpr uint64_t kBeats = 2 * kSize.layers;
  alignas(8) uint64_t counter = 0;
  model.decoder->set_heartbeat(&counter);
  std::thread watcher([&] {
    while (std::atomic_ref<uint64_t>(counter).load(std::memory_order_relaxed) < kBeats) std::this_thread::yield();
  });
  run_step(*model.decoder, {{0, 20}});
  run_step(*model.decoder, {{20, 1}});
  watcher.join();
  CHECK(counter == kBeats);
}

TEST(thread_pool_claims_every_item_once_between_barriers) {
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads, true);
    constexpr int64_t kItems = 1000;
    std::vector<int> counts(kItems, 0), sums(kItems, 0);
    for (int round = 1; round <= 20; ++round) {
      pool.run([&](int thread) {
        int64_t begin, end;
        while (pool.claim(thread, kItems, 7, &begin, &end))
          for (int64_t item = begin; item < end; ++item) ++counts[static_cast<size_t>(item)];
        pool.barrier();
        while (pool.claim(thread, kItems, 3, &begin, &end))
          for (int64_t item = begin; item < end; ++item)
            sums[static_cast<size_t>(item)] += counts[static_cast<size_t>(kItems - 1 - item)];
        pool.barrier();
      });
      for (int count : counts) CHECK(count == round);
    }
    for (int sum : sums) CHECK(sum == 210);
    CHECK(pool.num_barriers() == 20 * (num_threads == 1 ? 2 : 3));
  }
}

TEST(thread_pool_serves_several_callers_and_sleeping_workers) {
  ThreadPool pool(3, false);
  int64_t total = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        pool.run([&](int thread) {
          if (thread == 0) ++total;
          pool.barrier();
        });
        if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(6));  // long enough to park
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 30);
}
