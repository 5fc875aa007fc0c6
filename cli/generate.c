#include "cli/generate.h"

#include <math.h>

/* The finaliser of splitmix64. */
static uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint64_t nr_stream_of(int64_t seed, const char *name) {
  uint64_t hash = mix((uint64_t)seed + 0x9e3779b97f4a7c15u);
  for (; *name; name++)
    hash = mix(hash ^ (unsigned char)*name);
  return hash;
}

double nr_normal(uint64_t stream, int64_t i) {
  uint64_t bits = mix(stream + (uint64_t)i * 0x9e3779b97f4a7c15u);
  int32_t sum = (int32_t)((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
  return (sum - 2 * 65535) * (1 / 37837.0); /* 65536 / sqrt(3) */
}

void nr_fill_normal(void *array, nr_dtype dtype, uint64_t stream, int64_t first, int64_t count, double centre,
                    double scale) {
  for (int64_t i = first; i < first + count; i++)
    nr_store(array, dtype, i, centre + scale * nr_normal(stream, i));
}

void nr_fill_angles(void *array, nr_dtype dtype, int64_t dim, int64_t width, int64_t first, int64_t count, bool sine) {
  for (int64_t i = 0; i < dim; i++) {
    double frequency =
        pow(10000, -2.0 * (double)(width == 2 ? i / 2 : i % (width / 2)) / (double)(width == 2 ? dim : width));
    for (int64_t t = first; t < first + count; t++)
      nr_store(array, dtype, t * dim + i, sine ? sin((double)t * frequency) : cos((double)t * frequency));
  }
}
