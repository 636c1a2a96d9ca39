// SPDX-License-Identifier: Apache-2.0
// Many copies of a few KiB each, at the speed of one large one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace epd {

// Copies that are added one by one and are done once `finish` has returned.
//
// Several run side by side, a few cache lines of each at a time: one after the other, each waits for memory at its
// start. Where all of them together are larger than what a cache keeps, they are written past the caches: writing
// through a cache first reads what is about to be overwritten. Short ones of less than that are left to memcpy.
class Copies {
 public:
  struct Way;

  explicit Copies(std::int64_t total_bytes);

  void add(std::uint8_t* target, const std::uint8_t* source, std::int64_t nbytes);
  void finish();

 private:
  struct Piece {
    std::uint8_t* target;
    const std::uint8_t* source;
    std::int64_t nbytes;
  };

  void run(std::size_t count);

  const Way* way_;
  std::size_t count_ = 0;
  std::array<Piece, 12> waiting_;
};

}  // namespace epd
