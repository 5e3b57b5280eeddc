// edgewright.h over TVM's runtime, through its C ABI alone: no C++ type or exception crosses a library. The layout of the parameter file is described in Edgewright's
// artifacts/formats/tvm.py; describe() of a library says what shapes and which parameters it wants.
#include "edgewright.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ffi = tvm::ffi;

namespace {

thread_local std::string error;

constexpr size_t kAlign = 64;
constexpr DLDevice kCpu{kDLCPU, 0};

struct Header {
  char magic[8];
  uint32_t tensors, name_bytes;
  uint8_t digest[32], zero[16];
};
struct Record {
  uint64_t offset, size;
  uint32_t kind, dimensions;
  uint64_t shape[4], zero;
};
static_assert(sizeof(Header) == 64 && sizeof(Record) == 64, "as they lie in the file");

constexpr DLDataType kKinds[] = {{kDLUInt, 8, 1}, {kDLFloat, 16, 1}, {kDLFloat, 32, 1}, {kDLUInt, 16, 1}};

struct Mapped {  // a tensor over memory that the model owns
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};
struct Owned {  // zeroed memory of its own
  void AllocData(DLTensor* tensor) {
    size_t bytes = (ffi::GetDataSize(*tensor) + kAlign - 1) / kAlign * kAlign;
    if (posix_memalign(&tensor->data, kAlign, bytes) != 0) throw std::runtime_error("out of memory");
    std::memset(tensor->data, 0, bytes);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

[[noreturn]] void Fail(const std::string& message) { throw std::runtime_error(message); }

template <typename Result = ffi::Any, typename... Arguments>
Result Call(const ffi::Function& function, Arguments&&... arguments) {
  auto result = function.CallExpected<Result>(std::forward<Arguments>(arguments)...);
  if (result.is_err()) Fail(std::string(result.error().message()));
  return result.value();
}

ffi::Function Global(const char* name) {
  auto found = ffi::Function::GetGlobal(name);
  if (!found.has_value()) Fail(std::string("TVM's runtime is not loaded: it has no ") + name);
  return *found;
}

ffi::Function Method(const ffi::Module& module, const std::string& name) {
  auto found = Call(Global("ffi.ModuleGetFunction"), module, name, true);
  auto function = found.try_cast<ffi::Function>();
  if (!function.has_value()) Fail("not a library of an Edgewright model: it has no " + name);
  return *function;
}

ffi::Shape ShapeOf(const ffi::json::Value& value) {
  std::vector<int64_t> shape;
  for (const auto& dim : value.cast<ffi::json::Array>()) shape.push_back(dim.cast<int64_t>());
  return ffi::Shape(shape);
}

}  // namespace

struct edgewright_model {
  ffi::Optional<ffi::Module> machine;
  ffi::Function decode{nullptr}, prefill{nullptr}, score{nullptr};
  ffi::Array<ffi::Any> state;
  void* mapped = MAP_FAILED;
  size_t mapped_bytes = 0, vocabulary = 0, capacity = 0, chunk = 0, length = 0;

  ~edgewright_model() {
    state = {};
    if (mapped != MAP_FAILED) munmap(mapped, mapped_bytes);
  }

  void Load(ffi::Module library, const char* params, int threads, bool exact) {
    if (threads > 0) Call(Global("runtime.config_threadpool"), 1, threads);
    auto vm = Call<ffi::Module>(Method(library, "vm_load_executable"));
    machine = vm;
    constexpr int kPooled = 2;
    Call(Method(vm, "vm_initialization"), int(kDLCPU), 0, kPooled);
    auto text = Call<ffi::String>(Method(vm, "describe"));
    auto about = Call<ffi::json::Object>(Global("ffi.json.Parse"), text);
    vocabulary = about["vocab_size"].cast<int64_t>();
    capacity = about["max_tokens"].cast<int64_t>();
    chunk = about["chunk"].cast<int64_t>();
    std::string suffix = exact ? "_exact" : "";
    decode = Method(vm, "decode" + suffix);
    prefill = Method(vm, "prefill" + suffix);
    score = Method(vm, "score" + suffix);
    for (int64_t i = 0; i < about["layers"].cast<int64_t>(); ++i) {
      for (const char* shape : {"key_shape", "value_shape"}) {
        state.push_back(ffi::Tensor::FromNDAlloc(Owned{}, ShapeOf(about[shape]), DLDataType{kDLFloat, 32, 1}, kCpu));
      }
    }
    Map(params, std::string(about["params_digest"].cast<ffi::String>()));
  }

  void Map(const char* path, const std::string& digest) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (file < 0 || fstat(file, &info) != 0) Fail(std::string(path) + ": " + std::strerror(errno));
    mapped_bytes = info.st_size;
    if (mapped_bytes >= sizeof(Header)) mapped = mmap(nullptr, mapped_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (mapped == MAP_FAILED) Fail(std::string(path) + ": cannot be mapped");
    const auto* bytes = static_cast<const uint8_t*>(mapped);
    const auto& header = *reinterpret_cast<const Header*>(bytes);
    if (std::memcmp(header.magic, "EDGEPAR1", 8) != 0) Fail(std::string(path) + ": not a parameter file");
    std::string found;
    for (uint8_t byte : header.digest) {
      for (int digit : {byte >> 4, byte & 15}) found += "0123456789abcdef"[digit];
    }
    if (found != digest) Fail(std::string(path) + ": made for another library (digest " + found + ", wanted " + digest + ")");
    const auto* records = reinterpret_cast<const Record*>(bytes + sizeof(Header));
    if (header.tensors > (mapped_bytes - sizeof(Header)) / sizeof(Record)) Fail(std::string(path) + ": cut short");
    for (uint32_t i = 0; i < header.tensors; ++i) {
      const Record& r = records[i];
      if (r.kind > 3 || r.dimensions > 4 || r.offset % kAlign != 0 || r.size > mapped_bytes ||
          r.offset > mapped_bytes - r.size) {
        Fail(std::string(path) + ": cut short or damaged");
      }
      std::vector<int64_t> shape(r.shape, r.shape + r.dimensions);
      auto* data = const_cast<uint8_t*>(bytes) + r.offset;
      auto tensor = ffi::Tensor::FromNDAlloc(Mapped{data}, ffi::Shape(shape), kKinds[r.kind], kCpu);
      if (ffi::GetDataSize(tensor) != r.size) Fail(std::string(path) + ": damaged");
      state.push_back(tensor);
    }
  }

  void Run(const ffi::Function& step, const int32_t* tokens, size_t count, float* logits, size_t rows) {
    std::vector<int64_t> ids(tokens, tokens + count), positions(count);
    for (size_t i = 0; i < count; ++i) {
      if (tokens[i] < 0 || static_cast<size_t>(tokens[i]) >= vocabulary) Fail("a token is outside of the vocabulary");
      positions[i] = length + i;
    }
    auto row = [&](std::vector<int64_t>& values) {
      ffi::Shape shape{1, static_cast<int64_t>(count)};
      return ffi::Tensor::FromNDAlloc(Mapped{values.data()}, shape, DLDataType{kDLInt, 64, 1}, kCpu);
    };
    auto out = Call<ffi::Tensor>(step, row(ids), row(positions), state);
    length += count;
    if (logits != nullptr) std::memcpy(logits, out.data_ptr(), rows * vocabulary * sizeof(float));
  }

  void Feed(const int32_t* tokens, size_t count, float* logits, bool all) {
    if (count == 0 || count > capacity - length) Fail("the tokens do not fit the context");
    for (size_t done = 0; done < count;) {
      size_t now = std::min(count - done, chunk);
      if (all) {
        Run(score, tokens + done, now, logits + done * vocabulary, now);
      } else {
        bool last = done + now == count;
        Run(now == 1 ? decode : prefill, tokens + done, now, last ? logits : nullptr, 1);
      }
      done += now;
    }
  }
};

namespace {

template <typename Body>
int Guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
    return -1;
  }
}

// `loader`: the function of TVM that gives the library for `name`.
edgewright_model* Opened(const char* loader, const std::string& name, const char* params, int threads, bool exact) {
  auto* model = new edgewright_model;
  if (Guarded([&] { model->Load(Call<ffi::Module>(Global(loader), name), params, threads, exact); }) == 0) {
    return model;
  }
  delete model;
  return nullptr;
}

}  // namespace

const char* edgewright_variants(void) {
#if defined(__APPLE__)
  auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  bool dotprod = has("hw.optional.arm.FEAT_DotProd"), i8mm = has("hw.optional.arm.FEAT_I8MM");
#elif defined(__aarch64__)
  bool dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP, i8mm = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
#endif
#if defined(__aarch64__)
  return dotprod && i8mm ? "i8mm dotprod neon" : dotprod ? "dotprod neon" : "neon";
#elif defined(__x86_64__)
  // cpuid leaf 7, and from XCR0 whether the system saves the wide registers
  unsigned a, b = 0, c = 0, d, low = 0, high = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) && (c >> 27 & 1)) asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (low & 0x6) != 0x6 || !(b >> 5 & 1)) return "";
  constexpr unsigned kFoundation = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // f, dq, bw, vl
  bool vnni = (low & 0xe0) == 0xe0 && (b & kFoundation) == kFoundation && (c >> 11 & 1);
  return vnni ? "avx512vnni avx2" : "avx2";
#else
  return "";
#endif
}

edgewright_model* edgewright_open(const char* folder, const char* params, int threads) {
  std::string names = edgewright_variants();
  for (size_t begin = 0; begin < names.size();) {
    size_t end = std::min(names.find(' ', begin), names.size());
    std::string variant = names.substr(begin, end - begin);
    begin = end + 1;
    if (folder == nullptr) {
      if (auto* model = Opened("ffi.SystemLib", "edgewright_" + variant + "_", params, threads, false)) return model;
      continue;
    }
    std::string path = std::string(folder) + "/libmodel-" + variant + ".so";
    if (access(path.c_str(), R_OK) == 0) return edgewright_open_library(path.c_str(), params, threads, 0);
  }
  if (folder != nullptr) error = std::string(folder) + ": holds no library for this CPU (" + names + ")";
  return nullptr;
}

edgewright_model* edgewright_open_library(const char* library, const char* params, int threads, int exact) {
  return Opened("ffi.ModuleLoadFromFile", library, params, threads, exact != 0);
}

size_t edgewright_vocabulary(const edgewright_model* model) { return model->vocabulary; }
size_t edgewright_capacity(const edgewright_model* model) { return model->capacity; }

int edgewright_feed(edgewright_model* model, const int32_t* tokens, size_t count, float* logits) {
  return Guarded([&] { model->Feed(tokens, count, logits, false); });
}

int edgewright_score(edgewright_model* model, const int32_t* tokens, size_t count, float* logits) {
  return Guarded([&] { model->Feed(tokens, count, logits, true); });
}

void edgewright_reset(edgewright_model* model) { model->length = 0; }
void edgewright_close(edgewright_model* model) { delete model; }
const char* edgewright_error(void) { return error.c_str(); }
