// SPDX-License-Identifier: Apache-2.0
// The module vllm_epd._C. It knows addresses, not tensors, and so is built without torch and works beside any torch;
// vllm_epd/ops.py alone calls it, and has checked that the addresses hold what the arguments say. Row numbers are left
// to the kernels.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "codec.h"
#include "gather_scatter.h"

namespace {

using epd::Rows;

// A bytes-like argument, or None.
struct Buffer {
  Py_buffer view{};

  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { PyBuffer_Release(&view); }

  const std::int64_t* data() const { return static_cast<const std::int64_t*>(view.buf); }
  std::int64_t size() const { return view.len / static_cast<std::int64_t>(sizeof(std::int64_t)); }
};

// Other Python threads run while this exists.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

template <typename Action>
PyObject* run(const Action& action) {
  try {
    Unlocked unlocked;
    action();
  } catch (const std::out_of_range& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

template <typename T = std::uint8_t>
T* pointer(unsigned long long address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

epd::Planes planes_of(const Buffer& table, std::int64_t rows) {
  EPD_CHECK(table.size() % 4 == 0, table.size(), " numbers in a table of four columns");
  const std::int64_t count = table.size() / 4;
  return {table.data(), table.data() + count, table.data() + 2 * count, count, rows};
}

Rows rows_of(const Buffer& rows, std::int64_t count) {
  EPD_CHECK(!rows.view.obj || rows.size() == count, rows.size(), " row numbers for ", count, " rows");
  return {rows.view.obj ? rows.data() : nullptr, count};
}

PyObject* gather_rows(PyObject*, PyObject* arguments) {
  Buffer table, rows;
  long long num_rows, out_bytes, threads;
  unsigned long long out;
  if (!PyArg_ParseTuple(arguments, "y*Ly*KLL", &table.view, &num_rows, &rows.view, &out, &out_bytes, &threads)) {
    return nullptr;
  }
  return run([&] {
    epd::gather_rows(planes_of(table, num_rows), rows_of(rows, rows.size()), pointer(out), out_bytes, threads);
  });
}

PyObject* scatter_rows(PyObject*, PyObject* arguments) {
  Buffer table, rows;
  long long num_rows, source_bytes, threads;
  unsigned long long source;
  if (!PyArg_ParseTuple(arguments, "KLy*Ly*L", &source, &source_bytes, &table.view, &num_rows, &rows.view, &threads)) {
    return nullptr;
  }
  return run([&] {
    epd::scatter_rows(pointer(source), source_bytes, planes_of(table, num_rows), rows_of(rows, rows.size()), threads);
  });
}

// What the two codec functions take, in the same order.
struct CodecArguments {
  unsigned long long matrix, codes, scales;
  long long stride, num_rows, width, count, threads;
  int format, code;
  Buffer rows;

  bool parse(PyObject* arguments) {
    return PyArg_ParseTuple(
        arguments, "KLLLiz*LKKiL", &matrix, &stride, &num_rows, &width, &format, &rows.view, &count, &codes, &scales,
        &code, &threads);
  }

  epd::Matrix as_matrix() const {
    return {pointer(matrix), stride, num_rows, width, static_cast<epd::Format>(format)};
  }

  epd::Coded as_coded() const { return {pointer(codes), pointer<float>(scales), static_cast<epd::Code>(code)}; }
};

PyObject* quantize_rows(PyObject*, PyObject* arguments) {
  CodecArguments given;
  if (!given.parse(arguments)) return nullptr;
  return run([&] {
    epd::quantize_rows(given.as_matrix(), rows_of(given.rows, given.count), given.as_coded(), given.threads);
  });
}

PyObject* dequantize_rows(PyObject*, PyObject* arguments) {
  CodecArguments given;
  if (!given.parse(arguments)) return nullptr;
  return run([&] {
    epd::dequantize_rows(given.as_coded(), given.as_matrix(), rows_of(given.rows, given.count), given.threads);
  });
}

PyMethodDef methods[] = {
    {"gather_rows", gather_rows, METH_VARARGS, nullptr},
    {"scatter_rows", scatter_rows, METH_VARARGS, nullptr},
    {"quantize_rows", quantize_rows, METH_VARARGS, nullptr},
    {"dequantize_rows", dequantize_rows, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "vllm_epd._C", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&module); }
