// Turns a C++ exception into the text that Rust gets.

#pragma once

#include <c10/util/Exception.h>
#include <cstring>
#include <exception>

namespace {

// nullptr when all went well, else the exception's text (freed with tikhonov_free).
template <typename F>
char* guarded(F&& f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("libtorch threw an object that is not an exception");
  }
}

}  // namespace
