// Weights that stay on disk: matrices of a packed file, read ahead of the step into a ring of memory.
//
//   order of use    q2 o2 g2 d2 | q5 o5 g5 d5 | q2 o2 g2 d2 | ...      one pass is one step; passes follow without end
//                         ^           ^             ^
//                     released_     ready_       claimed_              sequence numbers: released_ <= ready_ <= claimed_
//
// Readers claim room in the ring for the next matrix as soon as there is any, also between steps, and fill it in pieces,
// several at once. The decoder waits for a matrix, multiplies, and releases it. What was read is published in order, so
// that all threads of a step agree on where a failed one ends.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "model_memory.h"

namespace oag {

// Direct reads begin, end and land on multiples of this.
constexpr size_t kDirectBytes = 4096;

// Weights could not be read, or are not those that were written.
class StreamError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What went wrong with a file; put into words by the thread that tells of it, as readers must not allocate.
struct StreamFault {
  enum class Kind { kNone, kEnded, kUnreadable, kAltered };
  Kind kind = Kind::kNone;
  uint64_t byte = 0;  // of the file
  int error = 0;      // kUnreadable: errno

  bool any() const { return kind != Kind::kNone; }
  std::string words() const;
};

// An open file that is closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

// A packed file that is open for reading, and how.
struct StreamSource {
  Descriptor descriptor;
  bool direct = true;   // opened with O_DIRECT; else pages are dropped behind each read
  std::string name;     // for messages
  int num_readers = 1;
  size_t slice_bytes = 0;  // of a matrix, that have a checksum of their own; the last slice may be shorter
};

// A matrix in the file, and the CRC-32 of each of its slices.
struct StreamedMatrix {
  uint64_t file_begin = 0;
  size_t num_bytes = 0;
  std::vector<uint32_t> checksums;

  uint64_t aligned_begin() const { return file_begin / kDirectBytes * kDirectBytes; }
  // Bytes of the ring that it takes.
  size_t ring_bytes() const {
    return static_cast<size_t>((file_begin + num_bytes + kDirectBytes - 1) / kDirectBytes * kDirectBytes -
                               aligned_begin());
  }
};

class WeightStream {
 public:
  // `order` is the order of use in a step. Starts to read at once. Throws std::invalid_argument for a matrix that
  // the ring cannot hold or that has too few checksums, and std::bad_alloc.
  WeightStream(StreamSource source, std::vector<StreamedMatrix> order, Memory& ring);
  ~WeightStream();
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  // ---- by the stepping thread, outside a run ----

  // Before each pass: after one that failed, read anew from its first matrix.
  void begin_pass();
  // Why the last pass failed.
  std::string failure() const;

  // ---- inside a run ----

  // The bytes of the matrix at `position` of the order; nullptr, for every thread alike, where it cannot be had: then
  // the pass is over. One thread `leads`: it counts, and adds to `heartbeat` (nullptr: none) while it waits.
  const uint8_t* wait(size_t position, bool leads, uint64_t* heartbeat);
  // Give the room of the oldest matrix back; one thread, when all have used it.
  void release();

  // ---- from any thread ----
  uint64_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }
  // Matrices that a step had to wait for, each counted once.
  uint64_t num_waits() const { return num_waits_.load(std::memory_order_relaxed); }

 private:
  // What the bytes of a file cannot change without changing, but for the granularity of its times.
  struct Signature {
    int64_t size = -1, modified_seconds = 0, modified_nanoseconds = 0, changed_seconds = 0, changed_nanoseconds = 0;
    bool operator==(const Signature&) const = default;
  };
  // A matrix in the ring.
  struct Entry {
    size_t ring_begin = 0;
    size_t num_taken = 0, num_unread = 0;  // pieces
    uint64_t generation = 0;               // of the file's signature before the first piece was read
  };
  struct Piece {
    uint64_t sequence = 0;
    size_t index = 0;
  };

  void check(size_t ring_bytes) const;
  void stop();
  void read_ahead();
  bool take_piece(Piece* piece);
  bool claim();
  StreamFault read(const Piece& piece) const;
  void look_for_changes();
  StreamFault verify(uint64_t sequence, std::unique_lock<std::mutex>& lock);
  void publish();
  void fail(uint64_t sequence, const StreamFault& fault);
  bool wait_until_ready(uint64_t sequence, bool leads, uint64_t* heartbeat);

  size_t position_of(uint64_t sequence) const { return static_cast<size_t>(sequence % order_.size()); }
  Entry& entry(uint64_t sequence) { return entries_[position_of(sequence)]; }
  const StreamedMatrix& matrix(uint64_t sequence) const { return order_[position_of(sequence)]; }

  const StreamSource source_;
  const std::vector<StreamedMatrix> order_;
  Memory& ring_;
  uint64_t pass_begin_ = 0;  // the stepping thread's
  std::atomic<uint64_t> bytes_read_{0}, num_waits_{0};

  mutable std::mutex mutex_;
  std::condition_variable room_;       // for readers: there may be something to read
  std::condition_variable published_;  // for the decoder: ready_ or failed_at_ has moved
  std::condition_variable idle_;       // for the stepping thread: no reader is at work
  std::atomic<uint64_t> ready_{0};     // written under the mutex
  uint64_t released_ = 0, claimed_ = 0;
  size_t ring_end_ = 0;  // where the last claim ends
  int num_busy_ = 0;
  bool stopped_ = false;
  bool failed_ = false;
  uint64_t failed_at_ = 0;
  StreamFault fault_;
  Signature signature_;
  uint64_t generation_ = 0;         // of the signature; a new one for every look while the file is being changed
  std::vector<uint64_t> verified_;  // the generation in which each matrix was read and checked
  std::vector<Entry> entries_;      // of sequence number s: s modulo the length of a pass
  std::vector<std::thread> readers_;
};

// Bytes per second at which a stream's readers read from a file of `file_bytes`, over and over for `seconds`, into the
// same kind of memory as a stream. Takes 64 MiB for the moment.
// Throws StreamError, std::invalid_argument, std::bad_alloc.
double probe_stream(const StreamSource& source, uint64_t file_bytes, double seconds);

}  // namespace oag
