#include "acl/memory.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "acl/acl_error.h"
#include "acl/acl_rt.h"
#include "acl/context.h"
#include "acl/device.h"
#include "acl/stream.h"
#include "base/alloc.h"
#include "cuda/runtime.h"

enum { ALIGNMENT = 64, FIRST_CAPACITY = 64 };
#define HUGE_PAGE ((size_t)2 << 20)

typedef struct block {
  void *address; /* NULL: an empty place of the table */
  size_t mapped; /* bytes to unmap; 0: nr_free */
  int32_t device;
  enum { PLAIN, ON_CUDA, FOR_CUDA } kind; /* the last: host memory that CUDA copies from and to at once */
} block;

/* A hash table with linear probing, at most half full, without tombstones: removing moves what follows back. */
static block *table;
static size_t capacity, used;                            /* capacity: 0 or a power of two */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the three */

static size_t home(const void *address) {
  return (size_t)((uint64_t)(uintptr_t)address * 0x9E3779B97F4A7C15u >> 20) & (capacity - 1);
}

/* The place of `address`, or the empty one where it belongs. */
static size_t place(const void *address) {
  size_t i = home(address);
  while (table[i].address && table[i].address != address)
    i = (i + 1) & (capacity - 1);
  return i;
}

static bool reserve(void) {
  if ((used + 1) * 2 <= capacity)
    return true;
  size_t old_capacity = capacity, wanted = capacity ? capacity * 2 : FIRST_CAPACITY;
  block *old = table, *wider = nr_calloc(wanted, sizeof *wider);
  if (!wider)
    return false;
  table = wider;
  capacity = wanted;
  for (size_t i = 0; i < old_capacity; i++)
    if (old[i].address)
      table[place(old[i].address)] = old[i];
  nr_free(old);
  return true;
}

static void remove_at(size_t hole) {
  used--;
  for (size_t i = (hole + 1) & (capacity - 1); table[i].address; i = (i + 1) & (capacity - 1))
    if (((i - home(table[i].address)) & (capacity - 1)) >= ((i - hole) & (capacity - 1))) {
      table[hole] = table[i];
      hole = i;
    }
  table[hole].address = NULL;
}

static bool insert(block b) {
  pthread_mutex_lock(&lock);
  bool room = reserve();
  if (room) {
    table[place(b.address)] = b;
    used++;
  }
  pthread_mutex_unlock(&lock);
  return room;
}

static void free_block(block b) {
  if (b.kind == ON_CUDA)
    nr_cuda->free(nr_device_cuda(b.device), b.address);
  else if (b.kind == FOR_CUDA)
    nr_cuda->free_host(b.address);
  else if (b.mapped)
    munmap(b.address, b.mapped);
  else
    nr_free(b.address);
}

void nr_memory_release(int32_t device) {
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < capacity;)
    if (table[i].address && table[i].device == device) {
      free_block(table[i]);
      remove_at(i); /* another block may have moved here: look again */
    } else {
      i++;
    }
  if (used == 0) {
    nr_free(table);
    table = NULL;
    capacity = 0;
  }
  pthread_mutex_unlock(&lock);
}

static size_t total_memory(void) {
  long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? (size_t)pages * (size_t)size : SIZE_MAX / 2;
}

static size_t available_memory(void) {
  unsigned long long kilobytes = 0;
  char line[128];
  FILE *file = fopen("/proc/meminfo", "re");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1)
      break;
  if (file)
    fclose(file);
  if (kilobytes)
    return (size_t)kilobytes << 10;
  long pages = sysconf(_SC_AVPHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? (size_t)pages * (size_t)size : 0;
}

static void *map(size_t size, int flags) {
  if (nr_fault())
    return NULL;
  void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return mapped == MAP_FAILED ? NULL : mapped;
}

/* Huge pages that were set aside for this, if `reserved`; else an aligned range that the system may back with huge
   pages. size: of b->mapped. */
static void map_huge(block *b, size_t size, bool reserved) {
  b->mapped = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
#ifdef MAP_HUGETLB
  b->address = reserved ? map(b->mapped, MAP_HUGETLB | 21 << 26 /* of 2^21 bytes */) : NULL;
  if (b->address)
    return;
#else
  (void)reserved;
#endif
  char *mapped = map(b->mapped + HUGE_PAGE, 0);
  if (!mapped)
    return;
  size_t before = (HUGE_PAGE - (uintptr_t)mapped % HUGE_PAGE) % HUGE_PAGE;
  if (before)
    munmap(mapped, before);
  munmap(mapped + before + b->mapped, HUGE_PAGE - before);
  b->address = mapped + before;
#ifdef MADV_HUGEPAGE
  madvise(b->address, b->mapped, MADV_HUGEPAGE); /* a wish */
#endif
}

/* policy: HUGE_FIRST, HUGE_ONLY or NORMAL_ONLY. */
static aclError allocate(void **address, size_t size, int32_t device, int policy, const char *who) {
  block b = {.device = device};
  int32_t cuda = nr_device_cuda(device == NR_HOST ? nr_context_current_device() : device);
  if (cuda >= 0) {
    b.kind = device == NR_HOST ? FOR_CUDA : ON_CUDA;
    b.address = device == NR_HOST ? nr_cuda->malloc_host(size) : nr_cuda->malloc(cuda, size);
  } else if (size <= total_memory()) { /* more would be refused by the system, or be promised and then not kept */
    if (policy == ACL_MEM_MALLOC_HUGE_ONLY || (policy == ACL_MEM_MALLOC_HUGE_FIRST && size >= HUGE_PAGE))
      map_huge(&b, size, policy == ACL_MEM_MALLOC_HUGE_ONLY);
    else
      b.address = nr_aligned_alloc(ALIGNMENT, size);
  }
  if (b.address && insert(b)) {
    *address = b.address;
    return ACL_SUCCESS;
  }
  if (b.address)
    free_block(b);
  return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "%s: no memory for %zu bytes", who, size);
}

static aclError release(void *address, bool host, const char *who) {
  block b = {0};
  pthread_mutex_lock(&lock);
  size_t i = capacity && address ? place(address) : 0;
  bool known = capacity && address && table[i].address, right = known && (table[i].device == NR_HOST) == host;
  if (right) {
    b = table[i];
    remove_at(i);
  }
  pthread_mutex_unlock(&lock);
  if (!right)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: %p is %s", who, address,
                       !known ? "no block of memory that is in use"
                       : host ? "device memory, which aclrtFree frees"
                              : "host memory, which aclrtFreeHost frees");
  free_block(b);
  return ACL_SUCCESS;
}

aclError aclrtMalloc(void **devPtr, size_t size, aclrtMemMallocPolicy policy) {
  if (!devPtr)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMalloc: devPtr is null");
  if (size == 0)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMalloc: size is 0");
  int kind = (int)policy & ~(ACL_MEM_TYPE_LOW_BAND_WIDTH | ACL_MEM_TYPE_HIGH_BAND_WIDTH);
  if (kind < ACL_MEM_MALLOC_HUGE_FIRST || kind > ACL_MEM_MALLOC_NORMAL_ONLY_P2P)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMalloc: policy 0x%x, expected ACL_MEM values", (unsigned)policy);
  nr_context *context;
  aclError error = nr_context_current(&context);
  if (error != ACL_SUCCESS)
    return error;
  error = allocate(devPtr, size, context->device, kind % ACL_MEM_MALLOC_HUGE_FIRST_P2P, __func__);
  nr_context_release(context);
  return error;
}

aclError aclrtFree(void *devPtr) { return release(devPtr, false, __func__); }

aclError aclrtMallocHost(void **hostPtr, size_t size) {
  if (!hostPtr)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMallocHost: hostPtr is null");
  if (size == 0)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMallocHost: size is 0");
  return allocate(hostPtr, size, NR_HOST, ACL_MEM_MALLOC_NORMAL_ONLY, __func__);
}

aclError aclrtFreeHost(void *hostPtr) { return release(hostPtr, true, __func__); }

aclError aclrtGetMemInfo(aclrtMemAttr attr, size_t *available, size_t *total) {
  if (!available || !total)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetMemInfo: %s is null", available ? "total" : "free");
  if ((int)attr < ACL_DDR_MEM || (int)attr > ACL_MEM_P2P_HUGE1G)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetMemInfo: attr %d, expected %d to %d", (int)attr, ACL_DDR_MEM,
                       ACL_MEM_P2P_HUGE1G);
  int32_t cuda = nr_device_cuda(nr_context_current_device());
  if (cuda >= 0)
    return nr_cuda->memory(cuda, available, total) == NR_OK
               ? ACL_SUCCESS
               : nr_acl_fail(ACL_ERROR_RT_FAILURE, "aclrtGetMemInfo: %s", nr_last_error());
  *total = total_memory();
  *available = available_memory();
  return ACL_SUCCESS;
}
