// SPDX-License-Identifier: Apache-2.0
#include "copies.h"

#include <algorithm>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace epd {

// How pieces are copied: several side by side, a turn of each at a time.
struct Copies::Way {
  void (*turn)(std::uint8_t* target, const std::uint8_t* source);
  std::int64_t turn_bytes;
  std::size_t side_by_side;
  std::int64_t least_bytes;  // of a piece, which memcpy copies where it is shorter
  std::int64_t alignment;    // of its target, likewise
  std::int64_t ahead_bytes;  // of it that are fetched while it waits
};

namespace {

// So much is no longer kept by a cache.
constexpr std::int64_t cached_bytes = 8 << 20;

#ifdef __x86_64__

constexpr std::int64_t stream_bytes = 128;
constexpr std::int64_t stream_ahead = 8 * stream_bytes;
constexpr std::int64_t copy_bytes = 256;

// Into L2: fewer lines can be on their way to L1 than it takes to wait for none of them.
void prefetch(const std::uint8_t* source, std::int64_t nbytes) {
  for (std::int64_t i = 0; i < nbytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(source + i), _MM_HINT_T1);
  }
}

void stream(std::uint8_t* target, const std::uint8_t* source) {
  prefetch(source + stream_ahead, stream_bytes);
  for (std::int64_t i = 0; i < stream_bytes; i += 16) {
    const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), value);
  }
}

__attribute__((target("avx"))) void copy(std::uint8_t* target, const std::uint8_t* source) {
  for (std::int64_t i = 0; i < copy_bytes; i += 32) {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), value);
  }
}

constexpr Copies::Way streamed{
    stream, stream_bytes, /*side_by_side=*/6, /*least_bytes=*/stream_bytes, /*alignment=*/16, stream_ahead};
constexpr Copies::Way cached{
    copy, copy_bytes, /*side_by_side=*/4, /*least_bytes=*/8 << 10, /*alignment=*/1, /*ahead_bytes=*/0};

// Null where memcpy is to copy each piece.
const Copies::Way* way_for(std::int64_t total_bytes) {
  if (total_bytes >= cached_bytes) return &streamed;
  return __builtin_cpu_supports("avx") ? &cached : nullptr;
}

// Makes streamed bytes visible to other threads in the order that these expect.
void end_streams() { _mm_sfence(); }

#else

void prefetch(const std::uint8_t*, std::int64_t) {}
void end_streams() {}
const Copies::Way* way_for(std::int64_t) { return nullptr; }

#endif

}  // namespace

Copies::Copies(std::int64_t total_bytes) : way_(way_for(total_bytes)) {}

void Copies::add(std::uint8_t* target, const std::uint8_t* source, std::int64_t nbytes) {
  if (nbytes == 0) return;  // tensors without elements have no address
  if (!way_ || nbytes < way_->least_bytes || reinterpret_cast<std::uintptr_t>(target) % way_->alignment != 0) {
    std::memcpy(target, source, static_cast<std::size_t>(nbytes));
    return;
  }
  prefetch(source, way_->ahead_bytes);
  waiting_[count_++] = {target, source, nbytes};
  if (count_ == waiting_.size()) run(way_->side_by_side);
}

void Copies::finish() {
  while (count_ > 0) run(std::min(count_, way_->side_by_side));
  end_streams();
}

void Copies::run(std::size_t count) {
  const auto turn = way_->turn;
  const std::int64_t turn_bytes = way_->turn_bytes;
  std::int64_t longest = 0;
  for (std::size_t k = 0; k < count; ++k) longest = std::max(longest, waiting_[k].nbytes);
  for (std::int64_t at = 0; at + turn_bytes <= longest; at += turn_bytes) {
    for (std::size_t k = 0; k < count; ++k) {
      const Piece& piece = waiting_[k];
      if (at + turn_bytes <= piece.nbytes) turn(piece.target + at, piece.source + at);
    }
  }
  for (std::size_t k = 0; k < count; ++k) {
    const Piece& piece = waiting_[k];
    const std::int64_t done = piece.nbytes / turn_bytes * turn_bytes;
    std::memcpy(piece.target + done, piece.source + done, static_cast<std::size_t>(piece.nbytes - done));
  }
  count_ -= count;
  std::copy_n(waiting_.begin() + count, count_, waiting_.begin());
}

}  // namespace epd
