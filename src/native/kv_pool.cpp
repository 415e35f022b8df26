#include "kv_pool.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "layout.h"

namespace oag {
namespace {

size_t pool_bytes(int64_t num_blocks, size_t block_bytes) {
  if (num_blocks < 1 || block_bytes == 0) throw std::invalid_argument("a KV pool needs at least one block of bytes");
  if (static_cast<size_t>(num_blocks) > std::numeric_limits<size_t>::max() / 2 / block_bytes) throw std::bad_alloc();
  return static_cast<size_t>(num_blocks) * block_bytes;
}

}  // namespace

size_t kv_head_bytes(KvFormat format, int head_dim) {
  const auto scales = static_cast<int64_t>(kv_has_scales(format) ? 2 * kBlockTokens * sizeof(float) : 0);
  return static_cast<size_t>(2 * kv_part_bytes(format, head_dim) + scales);
}

KvPool::KvPool(int64_t num_blocks, size_t block_bytes, size_t slab_bytes, int64_t max_blocks)
    : num_blocks_(num_blocks),
      max_blocks_(std::max(num_blocks, max_blocks)),
      block_bytes_(block_bytes),
      blocks_per_slab_(std::max<int64_t>(1, static_cast<int64_t>(slab_bytes / std::max<size_t>(block_bytes, 1)))),
      num_slabs_((num_blocks + blocks_per_slab_ - 1) / blocks_per_slab_),
      memory_(pool_bytes(num_blocks, block_bytes), pool_bytes(max_blocks_, block_bytes)) {}

size_t KvPool::resize(int64_t num_blocks) {
  if (num_blocks < 1 || num_blocks > max_blocks_)
    throw std::invalid_argument("a KV pool of " + std::to_string(num_blocks) + " blocks is not possible: from 1 to " +
                                std::to_string(max_blocks_) + " are");
  const size_t given_back = memory_.resize(pool_bytes(num_blocks, block_bytes_));
  num_blocks_ = num_blocks;
  num_slabs_ = (num_blocks + blocks_per_slab_ - 1) / blocks_per_slab_;
  return given_back;
}

void KvPool::check(int64_t block) const {
  if (block < 0 || block >= num_blocks_)
    throw std::out_of_range("KV block " + std::to_string(block) + " is not one of the pool's " +
                            std::to_string(num_blocks_));
}

void KvPool::copy(int64_t source, int64_t destination) {
  check(source);
  check(destination);
  if (source != destination) std::memcpy(block(destination), block(source), block_bytes_);
}

size_t KvPool::release_unused(const std::vector<bool>& live) {
  size_t released = 0;
  int64_t slab = 0;
  while (slab < num_slabs_) {  // neighbouring slabs go together, with the page that they share
    int64_t end = slab;
    const auto unused = [&](int64_t candidate) {
      const int64_t first = candidate * blocks_per_slab_;
      const int64_t last = std::min(first + blocks_per_slab_, num_blocks_);
      return std::none_of(live.begin() + first, live.begin() + last, [](bool flag) { return flag; });
    };
    while (end < num_slabs_ && unused(end)) ++end;
    if (end > slab) {
      const size_t begin_byte = static_cast<size_t>(slab * blocks_per_slab_) * block_bytes_;
      const bool whole = end == num_slabs_;
      const size_t end_byte = whole ? memory_.size() : static_cast<size_t>(end * blocks_per_slab_) * block_bytes_;
      released += memory_.release(begin_byte, end_byte);
    }
    slab = end + 1;
  }
  return released;
}

}  // namespace oag
