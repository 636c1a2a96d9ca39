// SPDX-License-Identifier: Apache-2.0
// Rows of many planes to and from one run of bytes, in device memory.
//
// Grid: x over (row, plane), row by row, and y over parts of a piece. The table has four columns of `planes` numbers each:
// address, stride, width, and offset within a packed row.

using Vector = uint4;

static __device__ bool aligned(const void* address) {
  return reinterpret_cast<unsigned long long>(address) % sizeof(Vector) == 0;
}

// The part of blockIdx.y: vectors where both ends allow them, else bytes.
static __device__ void copy_piece(char* target, const char* source, long long nbytes) {
  const long long first = static_cast<long long>(blockIdx.y) * blockDim.x + threadIdx.x;
  const long long step = static_cast<long long>(gridDim.y) * blockDim.x;
  const long long vectors = aligned(target) && aligned(source) ? nbytes / static_cast<long long>(sizeof(Vector)) : 0;
#pragma unroll 4
  for (long long i = first; i < vectors; i += step) {
    reinterpret_cast<Vector*>(target)[i] = reinterpret_cast<const Vector*>(source)[i];
  }
  for (long long i = vectors * sizeof(Vector) + first; i < nbytes; i += step) target[i] = source[i];
}

struct Piece {
  char* in_plane;
  long long packed;
  long long nbytes;
};

static __device__ Piece piece_of(const long long* table, long long planes, long long row_bytes, const long long* rows) {
  const long long i = blockIdx.x / planes, p = blockIdx.x % planes;
  const long long address = table[p] + rows[i] * table[planes + p];
  return {reinterpret_cast<char*>(address), i * row_bytes + table[3 * planes + p], table[2 * planes + p]};
}

extern "C" __global__ void gather_rows(
    const long long* table, long long planes, long long row_bytes, const long long* rows, char* out) {
  const Piece piece = piece_of(table, planes, row_bytes, rows);
  copy_piece(out + piece.packed, piece.in_plane, piece.nbytes);
}

extern "C" __global__ void scatter_rows(
    const long long* table, long long planes, long long row_bytes, const long long* rows, const char* source) {
  const Piece piece = piece_of(table, planes, row_bytes, rows);
  copy_piece(piece.in_plane, source + piece.packed, piece.nbytes);
}
