// A file of made-up or packed matrices, for streams: it lives as long as its name does.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "checksum.h"
#include "weight_stream.h"

class PackedWeights {
 public:
  static constexpr size_t kSliceBytes = 5000;

  PackedWeights() : descriptor_(mkstemp(name_)) { CHECK(descriptor_ >= 0); }
  ~PackedWeights() {
    close(descriptor_);
    unlink(name_);
  }
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

  // Append a matrix, 64-byte aligned as in packed files and rarely more.
  void add(const uint8_t* data, size_t bytes) {
    oag::StreamedMatrix matrix{end_, bytes, {}};
    write(end_, data, bytes);
    end_ = (end_ + bytes + 63) / 64 * 64;
    for (size_t begin = 0; begin < bytes; begin += kSliceBytes)
      matrix.checksums.push_back(oag::crc32(data + begin, std::min(kSliceBytes, bytes - begin)));
    order.push_back(matrix);
  }
  void write(uint64_t position, const void* data, size_t bytes) {
    CHECK(pwrite(descriptor_, data, bytes, static_cast<off_t>(position)) == static_cast<ssize_t>(bytes));
    CHECK(fsync(descriptor_) == 0);
  }
  void truncate(uint64_t bytes) { CHECK(ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0); }

  // Buffered, unless `direct`, which not every file system has.
  oag::StreamSource source(int num_readers, bool direct = false) const {
    const int descriptor = open(name_, O_RDONLY | (direct ? O_DIRECT : 0));
    CHECK(descriptor >= 0);
    return {oag::Descriptor(descriptor), direct, name_, num_readers, kSliceBytes};
  }
  size_t ring_bytes() const {
    size_t total = 0;
    for (const oag::StreamedMatrix& matrix : order) total += matrix.ring_bytes();
    return total;
  }

  std::vector<oag::StreamedMatrix> order;

 private:
  char name_[32] = "/tmp/oag-weights-XXXXXX";
  int descriptor_;
  uint64_t end_ = 4096 + 192;
};
