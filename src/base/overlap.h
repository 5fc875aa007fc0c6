/* Do strided views share memory? Exactly, for any strides: packed and interleaved views are told apart. */
#ifndef NR_BASE_OVERLAP_H
#define NR_BASE_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

/* The bytes of a strided array: `size` bytes from address + sum(index[i] * stride[i]), 0 <= index[i] < count[i]. */
typedef struct nr_region {
  uintptr_t address;
  int64_t count[4];  /* all > 0 */
  int64_t stride[4]; /* in bytes */
  int64_t size;
  uintptr_t low, high; /* first byte and one past the last; set by nr_region_bound */
} nr_region;

/* Sets low and high; false if the region would leave the address space. */
bool nr_region_bound(nr_region *region);

/* True if the bounded regions share a byte, or if that could not be settled within a fixed amount of work (which takes
   more than the nested strides of any sliced, transposed or packed array). */
bool nr_regions_overlap(const nr_region *a, const nr_region *b);

/* True if two different indices of the region share a byte; the same reservation. */
bool nr_region_overlaps_itself(const nr_region *region);

#endif
