// Weights that stay on disk: what a step gets is what was written, whatever the ring, the readers and the disk do.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "checksum.h"
#include "packed_weights.h"
#include "weight_stream.h"

using namespace oag;

namespace {

constexpr size_t kSizes[] = {64, 3 << 20, 4096, 70016, 1 << 20, 12352, (1 << 20) + 64};
constexpr size_t kNumMatrices = std::size(kSizes);

std::vector<uint8_t> contents(size_t index) {
  std::vector<uint8_t> bytes(kSizes[index]);
  uint32_t state = static_cast<uint32_t>(index) + 1;
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  return bytes;
}

void fill(PackedWeights& file) {
  for (size_t index = 0; index < kNumMatrices; ++index) {
    const std::vector<uint8_t> bytes = contents(index);
    file.add(bytes.data(), bytes.size());
  }
}

size_t least_ring(const PackedWeights& file) {
  size_t least = 0;
  for (const StreamedMatrix& matrix : file.order) least = std::max(least, matrix.ring_bytes());
  return least;
}

// Use one pass as a decoder does; returns how many matrices came before it failed.
size_t run_pass(WeightStream& stream) {
  stream.begin_pass();
  for (size_t index = 0; index < kNumMatrices; ++index) {
    const uint8_t* data = stream.wait(index, true, nullptr);
    if (data == nullptr) return index;
    const std::vector<uint8_t> expected = contents(index);
    CHECK(std::memcmp(data, expected.data(), expected.size()) == 0);
    stream.release();
  }
  return kNumMatrices;
}

}  // namespace

TEST(weight_stream_checksums_are_those_of_zlib) {
  const auto* text = reinterpret_cast<const uint8_t*>("123456789");
  CHECK(crc32(text, 9) == 0xCBF43926u);
  CHECK(crc32(text, 0) == 0);
  CHECK(crc32(text, 1) == 0x83DCEFB7u);
}

TEST(weight_stream_checksums_by_products_are_those_by_tables) {
  const std::vector<uint8_t> bytes = contents(1);
  for (size_t length = 0; length < 400; ++length)
    for (size_t begin : {0, 1, 17}) {
      const uint8_t* data = bytes.data() + begin;
      CHECK(crc32(data, length) == crc32_by_tables(data, length));
      CHECK(crc32(data + length, 300, crc32(data, length)) == crc32_by_tables(data, length + 300));
    }
  CHECK(crc32(bytes.data(), bytes.size()) == crc32_by_tables(bytes.data(), bytes.size()));
}

TEST(weight_stream_gives_what_was_written) {
  PackedWeights file;
  fill(file);
  const size_t least = least_ring(file);
  for (const bool direct : {false, true})
    for (const size_t ring_bytes : {least, least + 4096, least + (1 << 20) + 12288, file.ring_bytes()})
      for (const int num_readers : {1, 4}) {
        Memory ring(ring_bytes);
        WeightStream stream(file.source(num_readers, direct), file.order, ring);
        for (int pass = 0; pass < 4; ++pass) CHECK(run_pass(stream) == kNumMatrices);
        CHECK(stream.bytes_read() >= 4 * std::accumulate(std::begin(kSizes), std::end(kSizes), size_t{0}));
      }
}

TEST(weight_stream_of_one_matrix_goes_on) {
  PackedWeights file;
  const std::vector<uint8_t> bytes = contents(3);
  file.add(bytes.data(), bytes.size());
  Memory ring(file.ring_bytes());
  WeightStream stream(file.source(2), file.order, ring);
  for (int pass = 0; pass < 50; ++pass) {
    stream.begin_pass();
    const uint8_t* data = stream.wait(0, true, nullptr);
    CHECK(data != nullptr && std::memcmp(data, bytes.data(), bytes.size()) == 0);
    stream.release();
  }
}

TEST(weight_stream_refuses_what_cannot_work) {
  PackedWeights file;
  fill(file);
  Memory ring(least_ring(file)), small(least_ring(file) - 4096);
  int num_refused = 0;
  const auto refused = [&](Memory& memory, std::vector<StreamedMatrix> order) {
    try {
      WeightStream stream(file.source(1), std::move(order), memory);
    } catch (const std::invalid_argument&) {
      ++num_refused;
    }
  };
  refused(small, file.order);
  refused(ring, {});
  auto unchecked = file.order;
  unchecked[1].checksums.pop_back();
  refused(ring, unchecked);
  CHECK(num_refused == 3);
}

TEST(weight_stream_fails_where_the_file_ends_and_comes_back) {
  PackedWeights file;
  fill(file);
  const StreamedMatrix& last = file.order.back();
  for (const bool direct : {false, true}) {
    Memory ring(least_ring(file));
    WeightStream stream(file.source(3, direct), file.order, ring);
    CHECK(run_pass(stream) == kNumMatrices);
    file.truncate(last.file_begin + 100);
    while (run_pass(stream) == kNumMatrices) {  // what was read ahead is still good
    }
    CHECK(run_pass(stream) == kNumMatrices - 1);
    CHECK(stream.failure().find("truncated") != std::string::npos);
    const std::vector<uint8_t> bytes = contents(kNumMatrices - 1);
    file.write(last.file_begin, bytes.data(), bytes.size());
    CHECK(run_pass(stream) == kNumMatrices);
  }
}

TEST(weight_stream_notices_a_changed_byte_at_any_time) {
  PackedWeights file;
  fill(file);
  for (const size_t index : {size_t{0}, size_t{1}, kNumMatrices - 1}) {
    Memory ring(least_ring(file));
    WeightStream stream(file.source(2), file.order, ring);
    CHECK(run_pass(stream) == kNumMatrices);
    const std::vector<uint8_t> bytes = contents(index);
    const uint64_t position = file.order[index].file_begin + bytes.size() - 1;
    const uint8_t wrong = bytes.back() ^ 1;
    file.write(position, &wrong, 1);
    while (run_pass(stream) == kNumMatrices) {
    }
    CHECK(run_pass(stream) == index);
    CHECK(stream.failure().find("checksum") != std::string::npos);
    file.write(position, &bytes.back(), 1);
    CHECK(run_pass(stream) == kNumMatrices);
  }
}

TEST(weight_stream_reports_what_the_system_says) {
  PackedWeights file;
  fill(file);
  Memory ring(least_ring(file));
  // A directory cannot be read.
  WeightStream stream({Descriptor(open("/tmp", O_RDONLY)), false, "a directory", 2, PackedWeights::kSliceBytes},
                      file.order, ring);
  CHECK(run_pass(stream) == 0);
  CHECK(stream.failure().find("Is a directory") != std::string::npos);
}

TEST(weight_stream_beats_while_it_waits_and_all_threads_agree) {
  PackedWeights file;
  fill(file);
  Memory ring(least_ring(file));
  WeightStream stream(file.source(2), file.order, ring);
  stream.begin_pass();
  CHECK(stream.wait(0, true, nullptr) != nullptr);
  alignas(8) uint64_t beats = 0;
  // The ring has no room for the second matrix before the first is given back.
  const uint8_t* found[3] = {};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread)
    threads.emplace_back([&, thread] { found[thread] = stream.wait(1, thread == 0, &beats); });
  while (std::atomic_ref<uint64_t>(beats).load() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  stream.release();
  for (std::thread& thread : threads) thread.join();
  CHECK(found[0] != nullptr && found[1] == found[0] && found[2] == found[0]);
  CHECK(stream.num_waits() >= 1);
}
