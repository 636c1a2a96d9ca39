// SPDX-License-Identifier: Apache-2.0
// Loops over threads of their own: a second OpenMP beside torch's would compete with it for the same cores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace epd {

// Below this many bytes per thread, starting one costs more than it saves.
constexpr std::int64_t bytes_per_thread = 4 << 20;

// Calls body(begin, end) for ranges that cover 0..count, on up to `threads` threads. The body must not throw.
template <typename Body>
void parallel_for(std::int64_t count, std::int64_t bytes, std::int64_t threads, const Body& body) {
  threads = std::min({threads, bytes / bytes_per_thread, count});
  if (threads <= 1) {
    body(std::int64_t{0}, count);
    return;
  }
  struct Joined : std::vector<std::thread> {
    ~Joined() {
      for (auto& thread : *this) thread.join();
    }
  } started;
  started.reserve(static_cast<std::size_t>(threads - 1));
  for (std::int64_t i = 1; i < threads; ++i) {
    const std::int64_t begin = count * i / threads, end = count * (i + 1) / threads;
    try {
      started.emplace_back(body, begin, end);
    } catch (const std::system_error&) {  // the system starts no more threads
      body(begin, end);
    }
  }
  body(std::int64_t{0}, count / threads);
}

}  // namespace epd
