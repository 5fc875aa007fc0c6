/* The shim's runtime and its machine: one, that runs a block at a time, its threads as fibers. */
#include <cuda_runtime.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

extern "C" {
#include "base/dtype.h"
}

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void **, const void *, size_t) {}
static void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) {}
#endif

shim_dim3 threadIdx, blockIdx;

namespace {

enum { WARP = 32, MAX_THREADS = 1024, STACK = 256 << 10 };
/* The first less than a device's 48 KB, of which a kernel's static memory is part, too. */
enum : size_t { FREE_SHARED = 47 << 10, MOST_SHARED = 99 << 10, MOST_PARAMETERS = 32764 };

[[noreturn]] void stop(const char *what, int site) {
  std::fprintf(stderr, "cuda shim: block %u, thread %u, line %d: %s\n", blockIdx.x, threadIdx.x, site, what);
  std::abort();
}

/* ---- Fibers ---- */

enum state { READY, AT_WARP, AT_BLOCK, DONE };

struct fiber {
  char *stack;
  void *top; /* where it stopped */
  void *fake_stack;
  state at;
  int site;
  float shown[2]; /* to the other lanes of its warp, by turns */
  int turn;
};

struct machine {
  fiber fibers[MAX_THREADS];
  int threads, current;
  void *top; /* of who runs the fibers */
  void *fake_stack;
  const void *stack_bottom;
  size_t stack_size;
  const shim_kernel *kernel;
  const void *parameters;
  float *shared;
  uint32_t random; /* never 0 */
} m;

std::mutex running; /* the machine */

/* Saves what a function call must keep, and goes on elsewhere. */
extern "C" void shim_switch(void **from, void *to);
asm(R"(
.text
.type shim_switch, @function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch, .-shim_switch
)");

fiber &me() { return m.fibers[m.current]; }

void pause(state at, int site) {
  fiber &f = me();
  f.at = at;
  f.site = site;
  __sanitizer_start_switch_fiber(at == DONE ? nullptr : &f.fake_stack, m.stack_bottom, m.stack_size);
  shim_switch(&f.top, m.top);
  __sanitizer_finish_switch_fiber(f.fake_stack, &m.stack_bottom, &m.stack_size);
}

void begin() {
  __sanitizer_finish_switch_fiber(nullptr, &m.stack_bottom, &m.stack_size);
  m.kernel->run(m.parameters);
  pause(DONE, 0);
}

void resume(int thread) {
  m.current = thread;
  threadIdx = {(unsigned)thread, 0, 0};
  fiber &f = me();
  __sanitizer_start_switch_fiber(&m.fake_stack, f.stack, STACK);
  shim_switch(&m.top, f.top);
  __sanitizer_finish_switch_fiber(m.fake_stack, nullptr, nullptr);
}

void start(int thread) {
  fiber &f = m.fibers[thread];
  if (!f.stack)
    f.stack = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void **top = (void **)(f.stack + STACK) - 2; /* aligned as behind a call */
  *top = (void *)begin;
  f.top = top - 6;
  f.at = READY;
  f.turn = 0;
}

/* Lets the threads [first, end) go on, if they all wait, for one thing at one place. */
void release(int first, int end, state at, const char *divergence) {
  int waiting = 0;
  for (int i = first; i < end; i++)
    waiting += m.fibers[i].at == at;
  if (waiting == 0)
    return;
  for (int i = first; i < end; i++) {
    m.current = i;
    threadIdx = {(unsigned)i, 0, 0};
    bool elsewhere = at == AT_WARP && m.fibers[i].at == AT_BLOCK;
    if (m.fibers[i].at == DONE || elsewhere)
      stop(divergence, m.fibers[i].site);
    if (waiting == end - first && m.fibers[i].site != m.fibers[first].site)
      stop(divergence, m.fibers[i].site);
  }
  for (int i = first; i < end && waiting == end - first; i++)
    m.fibers[i].at = READY;
}

/* The same numbers in every run of a program, others for every block. */
uint32_t draw() {
  m.random ^= m.random << 13;
  m.random ^= m.random >> 17;
  return m.random ^= m.random << 5;
}

/* The threads of a warp that can go on, each once, in an order of which any may be the first and the last. */
void run_warp(int warp) {
  int start = (int)(draw() % WARP), step = draw() % 2 ? 1 : WARP - 1;
  if (draw() % 2)
    step = (int)(draw() % WARP) | 1;
  for (int i = 0; i < WARP; i++) {
    int thread = warp * WARP + (start + i * step) % WARP;
    if (m.fibers[thread].at == READY)
      resume(thread);
  }
  release(warp * WARP, (warp + 1) * WARP, AT_WARP, "a warp's threads meet at different places");
}

bool ready(int warp) {
  for (int i = 0; i < WARP; i++)
    if (m.fibers[warp * WARP + i].at == READY)
      return true;
  return false;
}

/* In some blocks warps take turns, in others one runs until it has to wait for the others. */
void run_block() {
  int warps = m.threads / WARP, warp = 0;
  for (int i = 0; i < m.threads; i++)
    start(i);
  for (bool greedy = draw() % 2;;) {
    int tried = 0;
    if (!greedy || !ready(warp))
      for (warp = (int)(draw() % (unsigned)warps); tried < warps && !ready(warp); tried++)
        warp = (warp + 1) % warps;
    if (tried < warps) {
      run_warp(warp);
      continue;
    }
    int done = 0;
    for (int i = 0; i < m.threads; i++)
      done += m.fibers[i].at == DONE;
    if (done == m.threads)
      return;
    release(0, m.threads, AT_BLOCK, "a block's threads meet at different places");
    if (!ready(warp))
      stop("threads wait for one another", me().site);
  }
}

void launch(const shim_kernel *kernel, const cudaLaunchConfig_t &config, const void *parameters) {
  std::lock_guard<std::mutex> lock(running);
  m.kernel = kernel;
  m.parameters = parameters;
  m.threads = (int)config.blockDim.x;
  m.shared = config.dynamicSmemBytes ? (float *)std::aligned_alloc(16, config.dynamicSmemBytes) : nullptr;
  for (unsigned block = 0; block < config.gridDim.x; block++) {
    blockIdx = {block, 0, 0};
    m.random = (m.random + block) * 2654435769u | 1;
    if (m.shared)
      std::memset((void *)m.shared, 0xff, config.dynamicSmemBytes); /* NaN */
    run_block();
  }
  std::free(m.shared);
}

} // namespace

void shim_block_barrier(int site) { pause(AT_BLOCK, site); }

void shim_warp_barrier(int site) { pause(AT_WARP, site); }

float shim_shuffle_xor(float value, int lanes, int site) {
  fiber &f = me();
  int turn = f.turn ^= 1;
  f.shown[turn] = value;
  int other = m.current ^ lanes;
  pause(AT_WARP, site);
  return m.fibers[other].shown[turn];
}

float *shim_shared() { return m.shared; }

float rsqrtf(float x) {
  float root = (float)(1 / std::sqrt((double)x));
  uint32_t bits = __float_as_uint(root);
  return root > 0 && root < 0x1p120f ? __uint_as_float(bits + (__float_as_uint(x) >> 3) % 5 - 2) : root;
}

/* The device's NaN has all bits of the payload. */
static uint32_t half(float value, uint16_t (*convert)(float)) { return value != value ? 0x7fff : convert(value); }
uint32_t nr_pack_bf16(float low, float high) {
  return half(low, nr_bf16_from_f32) | half(high, nr_bf16_from_f32) << 16;
}
uint32_t nr_pack_f16(float low, float high) { return half(low, nr_f16_from_f32) | half(high, nr_f16_from_f32) << 16; }
float nr_unpack_f16(uint16_t bits) { return nr_f32_from_f16(bits); }

/* ---- The runtime ---- */

namespace {

thread_local cudaError_t last;
thread_local int current_device;

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady)
    last = error;
  return error;
}

long number(const char *variable, long otherwise) {
  const char *text = std::getenv(variable);
  return text ? std::atol(text) : otherwise;
}

std::mutex memory; /* guards the maps */
std::map<void *, std::pair<int, size_t>> blocks;
std::map<std::pair<const void *, int>, size_t> allowed_shared; /* of a kernel on a device */

size_t used(int device) {
  size_t sum = 0;
  for (auto &block : blocks)
    sum += block.second.first == device ? block.second.second : 0;
  return sum;
}

size_t total() { return (size_t)number("SHIM_MEMORY", 4L << 30); }

} // namespace

struct shimStream {
  int device;
  shimGraph *capture;
};

struct shimEvent {
  bool timed, recorded;
  std::chrono::steady_clock::time_point at;
};

struct shimGraph {
  struct node {
    const shim_kernel *kernel;
    cudaLaunchConfig_t config;
    std::vector<max_align_t> parameters;
  };
  std::vector<node> nodes;
};

extern "C" {

cudaError_t cudaGetDeviceCount(int *count) {
  *count = (int)number("SHIM_DEVICES", 1);
  return answer(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  std::snprintf(properties->name, sizeof properties->name, "shim %d", device);
  properties->major = 9;
  properties->minor = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr, int) {
  *value = 1 << 20;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= number("SHIM_DEVICES", 1))
    return answer(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess: return "no error";
  case cudaErrorMemoryAllocation: return "out of memory";
  case cudaErrorNoDevice: return "no CUDA-capable device is detected";
  case cudaErrorInvalidDevice: return "invalid device ordinal";
  case cudaErrorInvalidResourceHandle: return "invalid resource handle";
  default: return "invalid argument";
  }
}

cudaError_t cudaMalloc(void **address, size_t size) {
  std::lock_guard<std::mutex> lock(memory);
  if (used(current_device) + size > total())
    return answer(cudaErrorMemoryAllocation);
  if (posix_memalign(address, 256, size))
    return answer(cudaErrorMemoryAllocation);
  std::memset(*address, 0xcd, size);
  blocks[*address] = {current_device, size};
  return cudaSuccess;
}

cudaError_t cudaFree(void *address) {
  std::lock_guard<std::mutex> lock(memory);
  if (address && !blocks.erase(address))
    return answer(cudaErrorInvalidValue);
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void **address, size_t size) {
  *address = std::malloc(size);
  return answer(*address ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *address) {
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
  std::lock_guard<std::mutex> lock(memory);
  *all = total();
  *available = *all - used(current_device);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind) {
  std::memmove(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, size, kind);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                         enum cudaMemcpyKind) {
  for (size_t row = 0; row < height; row++)
    std::memcpy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t size) {
  std::memset(to, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t) { return cudaMemset(to, value, size); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  *stream = new shimStream{current_device, nullptr};
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = new shimEvent{!(flags & cudaEventDisableTiming), false, {}};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = true;
  event->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
  if (!start->timed || !end->timed || !start->recorded || !end->recorded)
    return answer(cudaErrorInvalidResourceHandle);
  *ms = std::chrono::duration<float, std::milli>(end->at - start->at).count();
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute, int value) {
  if (!kernel || value < 0 || (size_t)value > MOST_SHARED)
    return answer(cudaErrorInvalidValue);
  std::lock_guard<std::mutex> lock(memory);
  allowed_shared[{kernel, current_device}] = (size_t)value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *address, void **parameters) {
  const shim_kernel *kernel = (const shim_kernel *)address;
  bool fits = config->blockDim.x && config->blockDim.x <= MAX_THREADS && config->blockDim.x % WARP == 0;
  if (!kernel || !fits || config->gridDim.x == 0 || config->gridDim.x > INT32_MAX || kernel->size > MOST_PARAMETERS)
    return answer(cudaErrorInvalidValue);
  if (config->stream && config->stream->device != current_device)
    return answer(cudaErrorInvalidResourceHandle);
  {
    std::lock_guard<std::mutex> lock(memory);
    auto allowed = allowed_shared.find({kernel, current_device});
    if (config->dynamicSmemBytes > (allowed == allowed_shared.end() ? FREE_SHARED : allowed->second))
      return answer(cudaErrorInvalidValue);
  }
  if (!config->stream || !config->stream->capture) {
    launch(kernel, *config, parameters[0]);
    return cudaSuccess;
  }
  shimGraph::node node = {kernel, *config, std::vector<max_align_t>(kernel->size / sizeof(max_align_t) + 1)};
  std::memcpy(node.parameters.data(), parameters[0], kernel->size);
  config->stream->capture->nodes.push_back(node);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode) {
  stream->capture = new shimGraph;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long) {
  *made = new shimGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (auto &node : graph->nodes)
    launch(node.kernel, node.config, node.parameters.data());
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
}
