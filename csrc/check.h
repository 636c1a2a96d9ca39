// SPDX-License-Identifier: Apache-2.0
// Checks that throw, with where they stand and what they saw.
#pragma once

#include <sstream>
#include <stdexcept>

namespace epd {

template <typename... Parts>
[[noreturn]] void fail(const char* file, int line, const char* expression, const Parts&... parts) {
  std::ostringstream text;
  text << file << ':' << line << ": not " << expression << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace epd

#define EPD_CHECK(condition, ...) \
  ((condition) ? void() : ::epd::fail(__FILE__, __LINE__, #condition, __VA_ARGS__))
