// SPDX-License-Identifier: Apache-2.0
#include "gather_scatter.h"

#include "copies.h"
#include "parallel.h"

namespace epd {
namespace {

// Calls copy(copies, address of a row of a plane, offset in the packed bytes, width) for everything there is to copy.
template <typename Copy>
void for_each_piece(const Planes& planes, Rows rows, std::int64_t threads, const Copy& copy) {
  const std::int64_t row_bytes = planes.row_bytes();
  const std::int64_t total = rows.count * row_bytes;
  parallel_for(rows.count, total, threads, [&](std::int64_t begin, std::int64_t end) {
    Copies copies(total);
    std::int64_t offset = begin * row_bytes;
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t p = 0; p < planes.count; ++p) {
        copy(copies, reinterpret_cast<std::uint8_t*>(planes.address[p] + rows[i] * planes.stride[p]), offset,
             planes.width[p]);
        offset += planes.width[p];
      }
    }
    copies.finish();
  });
}

void check(const Planes& planes, Rows rows, std::int64_t packed_bytes) {
  const std::int64_t expected = rows.count * planes.row_bytes();
  EPD_CHECK(packed_bytes == expected, packed_bytes, " bytes for ", rows.count, " rows of ", planes.row_bytes());
  rows.check(planes.rows);
}

}  // namespace

std::int64_t Planes::row_bytes() const {
  std::int64_t sum = 0;
  for (std::int64_t p = 0; p < count; ++p) sum += width[p];
  return sum;
}

void gather_rows(const Planes& planes, Rows rows, std::uint8_t* out, std::int64_t out_bytes, std::int64_t threads) {
  check(planes, rows, out_bytes);
  for_each_piece(planes, rows, threads, [=](Copies& copies, const std::uint8_t* row, std::int64_t at, std::int64_t n) {
    copies.add(out + at, row, n);
  });
}

void scatter_rows(
    const std::uint8_t* source, std::int64_t source_bytes, const Planes& planes, Rows rows, std::int64_t threads) {
  check(planes, rows, source_bytes);
  for_each_piece(planes, rows, threads, [=](Copies& copies, std::uint8_t* row, std::int64_t at, std::int64_t n) {
    copies.add(row, source + at, n);
  });
}

}  // namespace epd
