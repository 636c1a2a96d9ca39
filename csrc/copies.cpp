// SPDX-License-Identifier: Apache-2.0
#include "copies.h"

#include <algorithm>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace epd {
namespace {

constexpr std::int64_t cached_bytes = 8 << 20;
constexpr std::size_t side_by_side = 6;
constexpr std::int64_t turn_bytes = 128;
constexpr std::int64_t bytes_ahead = 8 * turn_bytes;

#ifdef __SSE2__

constexpr bool can_stream = true;

bool aligned(const std::uint8_t* target) { return reinterpret_cast<std::uintptr_t>(target) % sizeof(__m128i) == 0; }

// Into L2: fewer lines can be on their way to L1 than it takes to wait for none of them.
void prefetch(const std::uint8_t* source, std::int64_t nbytes) {
  for (std::int64_t i = 0; i < nbytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(source + i), _MM_HINT_T1);
  }
}

void stream_turn(std::uint8_t* target, const std::uint8_t* source) {
  prefetch(source + bytes_ahead, turn_bytes);
  for (std::int64_t i = 0; i < turn_bytes; i += 16) {
    const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), value);
  }
}

// Makes streamed bytes visible to other threads in the order that these expect.
void end_streams() { _mm_sfence(); }

#else

constexpr bool can_stream = false;

bool aligned(const std::uint8_t*) { return false; }
void prefetch(const std::uint8_t*, std::int64_t) {}
void stream_turn(std::uint8_t*, const std::uint8_t*) {}
void end_streams() {}

#endif

}  // namespace

Copies::Copies(std::int64_t total_bytes) : streaming_(can_stream && total_bytes >= cached_bytes) {}

void Copies::add(std::uint8_t* target, const std::uint8_t* source, std::int64_t nbytes) {
  if (nbytes == 0) return;  // tensors without elements have no address
  if (!streaming_ || nbytes < turn_bytes || !aligned(target)) {
    std::memcpy(target, source, static_cast<std::size_t>(nbytes));
    return;
  }
  prefetch(source, bytes_ahead);
  waiting_[count_++] = {target, source, nbytes};
  if (count_ == waiting_.size()) run(side_by_side);
}

void Copies::finish() {
  while (count_ > 0) run(std::min(count_, side_by_side));
  if (streaming_) end_streams();
}

void Copies::run(std::size_t count) {
  std::int64_t longest = 0;
  for (std::size_t k = 0; k < count; ++k) longest = std::max(longest, waiting_[k].nbytes);
  for (std::int64_t at = 0; at + turn_bytes <= longest; at += turn_bytes) {
    for (std::size_t k = 0; k < count; ++k) {
      const Piece& piece = waiting_[k];
      if (at + turn_bytes <= piece.nbytes) stream_turn(piece.target + at, piece.source + at);
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
