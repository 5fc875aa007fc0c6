/*
 * Sharing a byte is a bounded linear Diophantine equation: sum(a[i] * z[i]) = target with 0 <= z[i] <= bound[i]. It is
 * solved by trying the values of the largest coefficient first; what the smaller ones can still reach leaves one or two
 * values to try when the strides nest, as they do in every sliced array.
 */
#include "base/overlap.h"

#include <stddef.h>

enum { MAX_TERMS = 10, MAX_WORK = 1 << 16 };

typedef struct equation {
  int n, work;
  int64_t a[MAX_TERMS], bound[MAX_TERMS]; /* a > 0, descending once sorted */
  int64_t reach[MAX_TERMS + 1];           /* what the terms from i on can add up to */
  int64_t divisor[MAX_TERMS + 1];         /* greatest common divisor of the coefficients from i on */
} equation;

/* Adds coefficient * z, z in [low, low + bound], to the left-hand side; returns what to subtract from the target. */
static int64_t add_term(equation *e, int64_t coefficient, int64_t low, int64_t bound) {
  int64_t shift = coefficient * low;
  if (coefficient < 0) {
    shift += coefficient * bound;
    coefficient = -coefficient;
  }
  if (coefficient == 0 || bound == 0)
    return shift;
  int i = 0;
  while (i < e->n && e->a[i] != coefficient)
    i++;
  if (i < e->n) {
    e->bound[i] += bound;
    return shift;
  }
  for (i = e->n++; i > 0 && e->a[i - 1] < coefficient; i--)
    e->a[i] = e->a[i - 1], e->bound[i] = e->bound[i - 1];
  e->a[i] = coefficient, e->bound[i] = bound;
  return shift;
}

static int64_t gcd(int64_t a, int64_t b) {
  while (b) {
    int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

static bool solvable_from(equation *e, int i, int64_t target) {
  if (++e->work > MAX_WORK)
    return true;
  if (target < 0 || target > e->reach[i])
    return false;
  if (target == 0)
    return true;
  if (target % e->divisor[i] != 0)
    return false;
  if (i == e->n - 1)
    return true; /* divides, and is within reach */
  int64_t most = target / e->a[i] < e->bound[i] ? target / e->a[i] : e->bound[i];
  for (int64_t z = most; z >= 0 && target - z * e->a[i] <= e->reach[i + 1]; z--)
    if (solvable_from(e, i + 1, target - z * e->a[i]))
      return true;
  return false;
}

static bool solvable(equation *e, int64_t target) {
  e->work = 0;
  e->reach[e->n] = e->divisor[e->n] = 0;
  for (int i = e->n - 1; i >= 0; i--) {
    e->reach[i] = e->reach[i + 1] + e->a[i] * e->bound[i];
    e->divisor[i] = gcd(e->a[i], e->divisor[i + 1]);
  }
  return solvable_from(e, 0, target);
}

bool nr_region_bound(nr_region *region) {
  int64_t below = 0, above = region->size;
  for (int i = 0; i < 4; i++) {
    int64_t reach;
    if (__builtin_mul_overflow(region->count[i] - 1, region->stride[i], &reach))
      return false;
    if (__builtin_add_overflow(reach < 0 ? below : above, reach, reach < 0 ? &below : &above))
      return false;
  }
  /* A quarter of the range keeps every sum in this file free of overflow. */
  if (below < INT64_MIN / 8 || above > INT64_MAX / 8)
    return false;
  region->low = region->address + (uintptr_t)below;
  region->high = region->address + (uintptr_t)above;
  return region->low <= region->address && region->high > region->address;
}

bool nr_regions_overlap(const nr_region *a, const nr_region *b) {
  if (a->high <= b->low || b->high <= a->low)
    return false;
  equation e = {0};
  int64_t target = (int64_t)(b->address - a->address);
  for (int i = 0; i < 4; i++) {
    target -= add_term(&e, a->stride[i], 0, a->count[i] - 1);
    target -= add_term(&e, -b->stride[i], 0, b->count[i] - 1);
  }
  target -= add_term(&e, 1, 0, a->size - 1);
  target -= add_term(&e, -1, 0, b->size - 1);
  return solvable(&e, target);
}

static int64_t magnitude(int64_t value) { return value < 0 ? -value : value; }

/* True if the strides nest: each is larger than all that the smaller ones reach. */
static bool nests(const nr_region *region) {
  bool used[4] = {false};
  int64_t reach = region->size - 1;
  for (int round = 0; round < 4; round++) {
    int next = -1;
    for (int i = 0; i < 4; i++)
      if (!used[i] && region->count[i] > 1 &&
          (next < 0 || magnitude(region->stride[i]) < magnitude(region->stride[next])))
        next = i;
    if (next < 0)
      return true;
    if (magnitude(region->stride[next]) <= reach)
      return false;
    reach += magnitude(region->stride[next]) * (region->count[next] - 1);
    used[next] = true;
  }
  return true;
}

bool nr_region_overlaps_itself(const nr_region *region) {
  if (nests(region))
    return false;
  /* Two indices whose first difference is in axis k, where it is positive: their distance is a byte offset inside an
     element. */
  for (int k = 0; k < 4; k++) {
    if (region->count[k] < 2)
      continue;
    equation e = {0};
    int64_t target = -add_term(&e, region->stride[k], 1, region->count[k] - 2);
    for (int i = k + 1; i < 4; i++)
      target -= add_term(&e, region->stride[i], 1 - region->count[i], 2 * (region->count[i] - 1));
    target -= add_term(&e, 1, 1 - region->size, 2 * (region->size - 1));
    if (solvable(&e, target))
      return true;
  }
  return false;
}
