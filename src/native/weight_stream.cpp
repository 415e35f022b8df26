#include "weight_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "checksum.h"
#include "threads.h"

namespace oag {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr auto kBeatEvery = std::chrono::milliseconds(100);
// A file may change again without its times moving: they are counted in ticks of up to 10 ms.
constexpr auto kTimesSettle = std::chrono::milliseconds(50);

std::chrono::nanoseconds to_duration(int64_t seconds, int64_t nanoseconds) {
  return std::chrono::seconds(seconds) + std::chrono::nanoseconds(nanoseconds);
}

size_t num_pieces(const StreamedMatrix& matrix) { return (matrix.ring_bytes() + kPieceBytes - 1) / kPieceBytes; }

// Read `num_bytes` of a file, of which `wanted_bytes` must be there; returns what went wrong, or nothing.
StreamFault read_range(const StreamSource& source, uint8_t* target, uint64_t begin, size_t num_bytes,
                       size_t wanted_bytes) {
  size_t done = 0;
  while (done < wanted_bytes) {
    const ssize_t count =
        pread(source.descriptor.number(), target + done, num_bytes - done, static_cast<off_t>(begin + done));
    if (count < 0 && errno == EINTR) continue;
    // A direct read that does not begin on a block, behind a short one, is one behind the file's end.
    const bool ended = count == 0 || (count < 0 && errno == EINVAL && done % kDirectBytes != 0);
    if (ended) return {StreamFault::Kind::kEnded, begin + done, 0};
    if (count < 0) return {StreamFault::Kind::kUnreadable, begin + done, errno};
    done += static_cast<size_t>(count);
  }
  if (!source.direct)
    posix_fadvise(source.descriptor.number(), static_cast<off_t>(begin), static_cast<off_t>(num_bytes),
                  POSIX_FADV_DONTNEED);
  return {};
}

}  // namespace

std::string StreamFault::words() const {
  const std::string where = "byte " + std::to_string(byte);
  if (kind == Kind::kEnded) return "it ends at " + where + ": somebody truncated it";
  if (kind == Kind::kAltered) return "the matrix at " + where + " does not match its checksum";
  return where + " cannot be read: " + std::strerror(error);
}

WeightStream::WeightStream(StreamSource source, std::vector<StreamedMatrix> order, Memory& ring)
    : source_(std::move(source)), order_(std::move(order)), ring_(ring), verified_(order_.size()), entries_(order_.size()) {
  try {
    check(ring.size());
    // No pages beyond those asked for.
    if (!source_.direct) posix_fadvise(source_.descriptor.number(), 0, 0, POSIX_FADV_RANDOM);
    for (int reader = 0; reader < source_.num_readers; ++reader) start_thread(readers_, [this] { read_ahead(); });
  } catch (...) {
    stop();
    throw;
  }
}

WeightStream::~WeightStream() { stop(); }

void WeightStream::check(size_t ring_bytes) const {
  if (order_.empty() || source_.num_readers < 1 || source_.slice_bytes == 0)
    throw std::invalid_argument("a stream needs matrices, readers and slices");
  for (const StreamedMatrix& matrix : order_) {
    if (matrix.ring_bytes() > ring_bytes)
      throw std::invalid_argument("a ring of " + std::to_string(ring_bytes) + " bytes cannot hold a matrix of " +
                                  std::to_string(matrix.num_bytes));
    if (matrix.num_bytes == 0 ||
        matrix.checksums.size() != (matrix.num_bytes + source_.slice_bytes - 1) / source_.slice_bytes)
      throw std::invalid_argument("a matrix of " + std::to_string(matrix.num_bytes) + " bytes has " +
                                  std::to_string(matrix.checksums.size()) + " checksums");
  }
}

void WeightStream::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
  }
  room_.notify_all();
  for (std::thread& reader : readers_) reader.join();
}

// ---- the decoder's side ----

void WeightStream::begin_pass() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (failed_) {
    idle_.wait(lock, [this] { return num_busy_ == 0; });
    released_ = claimed_ = 0;
    ready_.store(0, std::memory_order_release);
    failed_ = false;
    room_.notify_all();
  }
  pass_begin_ = released_;
}

std::string WeightStream::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return "weights on disk: " + source_.name + ": " + fault_.words();
}

const uint8_t* WeightStream::wait(size_t position, bool leads, uint64_t* heartbeat) {
  const uint64_t sequence = pass_begin_ + position;
  if (ready_.load(std::memory_order_acquire) <= sequence && !wait_until_ready(sequence, leads, heartbeat))
    return nullptr;
  const StreamedMatrix& found = order_[position];
  return ring_.data() + entries_[position].ring_begin + (found.file_begin - found.aligned_begin());
}

bool WeightStream::wait_until_ready(uint64_t sequence, bool leads, uint64_t* heartbeat) {
  if (leads) num_waits_.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock<std::mutex> lock(mutex_);
  while (ready_.load(std::memory_order_relaxed) <= sequence) {
    if (failed_ && failed_at_ <= sequence) return false;
    published_.wait_for(lock, kBeatEvery);
    if (leads && heartbeat != nullptr)
      std::atomic_ref<uint64_t>(*heartbeat).fetch_add(1, std::memory_order_relaxed);
  }
  return true;
}

void WeightStream::release() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++released_;
  }
  room_.notify_one();
}

// ---- the readers ----

void WeightStream::read_ahead() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    Piece piece;
    room_.wait(lock, [&] { return stopped_ || take_piece(&piece); });
    if (stopped_) return;
    ++num_busy_;
    lock.unlock();
    StreamFault fault = read(piece);
    lock.lock();
    if (!fault.any() && entry(piece.sequence).num_unread == 1) fault = verify(piece.sequence, lock);
    if (fault.any()) {
      fail(piece.sequence, fault);
    } else {
      --entry(piece.sequence).num_unread;
      publish();
    }
    if (--num_busy_ == 0) idle_.notify_all();
  }
}

// Take the next piece of the last matrix claimed, or else claim another; the others hear of it if more is left.
bool WeightStream::take_piece(Piece* piece) {
  if (failed_) return false;  // all that comes before the failure is taken
  const bool some = claimed_ > released_ && entry(claimed_ - 1).num_taken < num_pieces(matrix(claimed_ - 1));
  if (!some && !claim()) return false;
  const uint64_t sequence = claimed_ - 1;
  *piece = {sequence, entry(sequence).num_taken++};
  room_.notify_one();
  return true;
}

// Find room behind the last matrix, or at the ring's start, for the next one; a matrix is never cut in two.
bool WeightStream::claim() {
  if (claimed_ - released_ == order_.size()) return false;
  const size_t bytes = matrix(claimed_).ring_bytes();
  size_t begin = ring_end_;
  if (claimed_ == released_) {
    begin = 0;
  } else if (const size_t oldest = entry(released_).ring_begin; begin > oldest) {
    if (bytes > ring_.size() - begin) begin = 0;
    if (begin == 0 && bytes > oldest) return false;
  } else if (bytes > oldest - begin) {
    return false;
  }
  look_for_changes();
  entry(claimed_) = {begin, 0, num_pieces(matrix(claimed_)), generation_};
  ring_end_ = begin + bytes;
  ++claimed_;
  return true;
}

// Read a piece; returns what went wrong, or nothing.
StreamFault WeightStream::read(const Piece& piece) const {
  const StreamedMatrix& wanted = matrix(piece.sequence);
  const size_t begin = piece.index * kPieceBytes;
  const size_t num_bytes = std::min(kPieceBytes, wanted.ring_bytes() - begin);
  const uint64_t file_begin = wanted.aligned_begin() + begin;
  const auto wanted_bytes = static_cast<size_t>(
      std::min<uint64_t>(num_bytes, wanted.file_begin + wanted.num_bytes - file_begin));
  // The entry keeps its place until all of its pieces are read and released.
  return read_range(source_, ring_.data() + entries_[position_of(piece.sequence)].ring_begin + begin, file_begin,
                    num_bytes, wanted_bytes);
}

// Begin a new generation if the file has changed since the last look, or so short before it that nobody could tell.
void WeightStream::look_for_changes() {
  struct stat status;
  if (fstat(source_.descriptor.number(), &status) != 0) status = {};
  const Signature now{status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec, status.st_ctim.tv_sec,
                      status.st_ctim.tv_nsec};
  const auto clock = std::chrono::system_clock::now().time_since_epoch();
  const bool settled = clock - to_duration(now.changed_seconds, now.changed_nanoseconds) > kTimesSettle;
  if (now == signature_ && settled) return;
  signature_ = now;
  ++generation_;
}

// Compare a matrix that was read with its checksums, unless it was good when it was read from the same unchanged file.
StreamFault WeightStream::verify(uint64_t sequence, std::unique_lock<std::mutex>& lock) {
  look_for_changes();
  const uint64_t before = entry(sequence).generation;
  if (before == generation_ && verified_[position_of(sequence)] == generation_) return {};
  const StreamedMatrix& wanted = matrix(sequence);
  const uint8_t* data = ring_.data() + entry(sequence).ring_begin + (wanted.file_begin - wanted.aligned_begin());
  lock.unlock();
  size_t num_good = 0;
  for (size_t begin = 0; begin < wanted.num_bytes; begin += source_.slice_bytes, ++num_good)
    if (crc32(data + begin, std::min(source_.slice_bytes, wanted.num_bytes - begin)) != wanted.checksums[num_good])
      break;
  lock.lock();
  if (num_good < wanted.checksums.size())
    return {StreamFault::Kind::kAltered, wanted.file_begin, 0};
  verified_[position_of(sequence)] = before;
  return {};
}

void WeightStream::publish() {
  uint64_t ready = ready_.load(std::memory_order_relaxed);
  const uint64_t before = ready;
  while (ready < claimed_ && entry(ready).num_unread == 0) bytes_read_ += matrix(ready++).num_bytes;
  if (ready == before) return;
  ready_.store(ready, std::memory_order_release);
  published_.notify_all();
}

void WeightStream::fail(uint64_t sequence, const StreamFault& fault) {
  if (failed_ && failed_at_ <= sequence) return;
  failed_ = true;
  failed_at_ = sequence;
  fault_ = fault;
  published_.notify_all();
}

double probe_stream(const StreamSource& source, uint64_t file_bytes, double seconds) {
  constexpr uint64_t kNumSlots = 64;
  const uint64_t num_pieces = file_bytes / kPieceBytes;
  if (num_pieces == 0) throw std::invalid_argument("a disk is measured with a file of a MiB at least");
  std::atomic<uint64_t> next{0}, num_done{0};
  std::atomic<bool> failed{false};
  Memory slots(kNumSlots * kPieceBytes);
  slots.populate(0, slots.size());
  const auto begun = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(); };
  const auto read_on = [&] {
    while (!failed && passed() < seconds) {
      const uint64_t piece = next++;
      const StreamFault fault = read_range(source, slots.data() + piece % kNumSlots * kPieceBytes,
                                           piece % num_pieces * kPieceBytes, kPieceBytes, kPieceBytes);
      if (fault.any()) failed = true;
      else ++num_done;
    }
  };
  std::vector<std::jthread> readers;  // joined also where one of them cannot be started
  for (int reader = 0; reader < source.num_readers; ++reader) start_thread(readers, read_on);
  readers.clear();
  const double elapsed = passed();
  if (failed) throw StreamError(source.name + " cannot be read");
  return static_cast<double>(num_done * kPieceBytes) / elapsed;
}

}  // namespace oag
