// The KV pool: equal blocks of 16 tokens that hold every layer, grouped in slabs that can be given back.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "model_memory.h"

namespace oag {

// A block holds the layers in order; a layer its kv heads in order; a kv head K, V and scales (layout.h).
// Blocks lie end to end, so the pool takes num_blocks * block_bytes rounded up to a page, and no more.
class KvPool {
 public:
  // `slab_bytes`: how much is given back at once at least (whole blocks). `max_blocks`: how many there can ever be, for
  // which addresses are reserved; 0 for num_blocks. Throws std::invalid_argument, bad_alloc.
  KvPool(int64_t num_blocks, size_t block_bytes, size_t slab_bytes, int64_t max_blocks = 0);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t max_blocks() const { return max_blocks_; }
  size_t block_bytes() const { return block_bytes_; }
  int64_t blocks_per_slab() const { return blocks_per_slab_; }
  int64_t num_slabs() const { return num_slabs_; }
  size_t allocated_bytes() const { return memory_.size(); }
  size_t resident_bytes() const { return memory_.resident_bytes(); }
  uint8_t* block(int64_t index) const { return memory_.data() + static_cast<size_t>(index) * block_bytes_; }

  void copy(int64_t source, int64_t destination);
  // Throws std::out_of_range unless 0 <= block < num_blocks.
  void check(int64_t block) const;
  // Take all memory now, so that the pool cannot fail later.
  void touch() { memory_.populate(0, memory_.size()); }
  // Change the number of blocks between steps. Blocks beyond it are lost and their memory is given back; new ones read
  // as zero and take memory as they are written. Returns the bytes given back that were in memory. Throws
  // std::invalid_argument unless 1 <= num_blocks <= max_blocks, bad_alloc; nothing has changed then.
  size_t resize(int64_t num_blocks);
  // Give back the slabs in which no block is live (live has num_blocks flags); returns bytes.
  size_t release_unused(const std::vector<bool>& live);

 private:
  int64_t num_blocks_;
  int64_t max_blocks_;
  size_t block_bytes_;
  int64_t blocks_per_slab_;
  int64_t num_slabs_;
  Memory memory_;
};

// Bytes of one kv head of one layer in a block.
size_t kv_head_bytes(KvFormat format, int head_dim);

}  // namespace oag
