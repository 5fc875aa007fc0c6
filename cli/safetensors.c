#include "cli/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The format's dtypes with whole bytes. */
static const struct {
  const char *name;
  int dtype;
  size_t size;
} dtypes[] = {{"F32", NR_F32, 4},
              {"F16", NR_F16, 2},
              {"BF16", NR_BF16, 2},
              {"F64", NR_F64, 8},
              {"BOOL", NR_FOREIGN_DTYPE, 1},
              {"U8", NR_FOREIGN_DTYPE, 1},
              {"I8", NR_FOREIGN_DTYPE, 1},
              {"F8_E5M2", NR_FOREIGN_DTYPE, 1},
              {"F8_E4M3", NR_FOREIGN_DTYPE, 1},
              {"F8_E8M0", NR_FOREIGN_DTYPE, 1},
              {"I16", NR_FOREIGN_DTYPE, 2},
              {"U16", NR_FOREIGN_DTYPE, 2},
              {"I32", NR_FOREIGN_DTYPE, 4},
              {"U32", NR_FOREIGN_DTYPE, 4},
              {"I64", NR_FOREIGN_DTYPE, 8},
              {"U64", NR_FOREIGN_DTYPE, 8},
              {"C64", NR_FOREIGN_DTYPE, 8}};

enum { NUM_DTYPES = sizeof dtypes / sizeof *dtypes, LENGTH_BYTES = 8 };

int64_t nr_tensor_elements(const nr_tensor *tensor) {
  int64_t count = 1;
  bool empty = false;
  for (int i = 0; i < tensor->rank; i++)
    empty |= tensor->shape[i] == 0;
  for (int i = 0; i < tensor->rank && !empty; i++)
    if (__builtin_mul_overflow(count, tensor->shape[i], &count))
      return -1;
  return empty ? 0 : count;
}

bool nr_tensor_measure(nr_tensor *tensor) {
  int64_t count = nr_tensor_elements(tensor);
  return count >= 0 && !__builtin_mul_overflow((size_t)count, nr_dtype_size((nr_dtype)tensor->dtype), &tensor->size) &&
         tensor->size <= INT64_MAX;
}

const char *nr_tensor_shape(const nr_tensor *tensor, char *buffer, size_t size) {
  size_t used = (size_t)snprintf(buffer, size, "[");
  for (int i = 0; i < tensor->rank && used < size; i++)
    used += (size_t)snprintf(buffer + used, size - used, i ? ",%" PRId64 : "%" PRId64, tensor->shape[i]);
  if (used < size)
    snprintf(buffer + used, size - used, "]");
  return buffer;
}

const nr_tensor *nr_container_find(const nr_container *container, const char *name) {
  for (size_t i = 0; i < container->num_tensors; i++)
    if (!strcmp(container->tensors[i].name, name))
      return &container->tensors[i];
  return NULL;
}

/* A byte range of the data, to find overlaps and gaps. */
typedef struct range {
  uint64_t begin, end;
  const char *name;
} range;

static int by_begin(const void *a, const void *b) {
  const range *left = a, *right = b;
  if (left->begin != right->begin)
    return left->begin < right->begin ? -1 : 1;
  return left->end < right->end ? -1 : left->end > right->end;
}

#define BAD(format, ...) nr_refuse(message, NR_EXIT_FILE, "%s: " format, c->path, __VA_ARGS__)
/* Names are shown cut: they are the file's, of any length. */
#define NAME "tensor '%.80s'"

static int read_shape(const nr_container *c, nr_tensor *tensor, const json_t *shape, nr_message *message) {
  if (!json_is_array(shape))
    return BAD(NAME ": no shape, expected an array of integers", tensor->name);
  if (json_array_size(shape) > NR_MAX_RANK)
    return BAD(NAME ": %zu dimensions, expected at most %d", tensor->name, json_array_size(shape), NR_MAX_RANK);
  tensor->rank = (int)json_array_size(shape);
  for (int i = 0; i < tensor->rank; i++) {
    const json_t *extent = json_array_get(shape, (size_t)i);
    if (!json_is_integer(extent) || json_integer_value(extent) < 0)
      return BAD(NAME ": dimension %d of its shape is no integer >= 0", tensor->name, i);
    tensor->shape[i] = json_integer_value(extent);
  }
  return NR_EXIT_OK;
}

/* One entry of the header; fills *tensor and its range. */
static int read_tensor(const nr_container *c, nr_tensor *tensor, const json_t *entry, uint64_t available, range *bytes,
                       nr_message *message) {
  const json_t *offsets = json_object_get(entry, "data_offsets"), *dtype = json_object_get(entry, "dtype");
  if (!json_is_object(entry))
    return BAD(NAME ": expected an object with dtype, shape and data_offsets", tensor->name);
  if (!json_is_string(dtype))
    return BAD(NAME ": no dtype, expected a string such as BF16", tensor->name);
  int d = 0;
  while (d < NUM_DTYPES && strcmp(dtypes[d].name, json_string_value(dtype)))
    d++;
  if (d == NUM_DTYPES)
    return BAD(NAME ": dtype '%.20s', which is unknown here", tensor->name, json_string_value(dtype));
  tensor->dtype = dtypes[d].dtype;
  int code = read_shape(c, tensor, json_object_get(entry, "shape"), message);
  if (code)
    return code;
  if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(json_array_get(offsets, 0)) ||
      !json_is_integer(json_array_get(offsets, 1)))
    return BAD(NAME ": no data_offsets, expected two integers", tensor->name);
  json_int_t begin = json_integer_value(json_array_get(offsets, 0)),
             end = json_integer_value(json_array_get(offsets, 1));
  if (begin < 0 || end < begin || (uint64_t)end > available)
    return BAD(NAME ": data_offsets [%lld,%lld], expected them in order and within the %" PRIu64 " bytes of data",
               tensor->name, (long long)begin, (long long)end, available);
  int64_t count = nr_tensor_elements(tensor);
  size_t size;
  char shape[160];
  if (count < 0 || __builtin_mul_overflow((size_t)count, dtypes[d].size, &size))
    return BAD(NAME ": shape %s is too large", tensor->name, nr_tensor_shape(tensor, shape, sizeof shape));
  if (size != (uint64_t)(end - begin))
    return BAD(NAME ": %lld bytes of data, expected %zu for %s %s", tensor->name, (long long)(end - begin), size,
               dtypes[d].name, nr_tensor_shape(tensor, shape, sizeof shape));
  tensor->size = size;
  *bytes = (range){(uint64_t)begin, (uint64_t)end, tensor->name};
  return NR_EXIT_OK;
}

/* The ranges must be the data, each byte once. */
static int check_cover(const nr_container *c, range *ranges, size_t count, uint64_t available, nr_message *message) {
  qsort(ranges, count, sizeof *ranges, by_begin);
  uint64_t at = 0;
  for (size_t i = 0; i < count; at = ranges[i++].end)
    if (ranges[i].begin != at)
      return BAD(NAME ": begins at byte %" PRIu64 " of the data, expected %" PRIu64 ", where the %s", ranges[i].name,
                 ranges[i].begin, at, i ? "one before it ends: no gaps, no overlaps" : "data begins");
  if (at != available)
    return BAD("%" PRIu64 " bytes of data, expected %" PRIu64 ", which the tensors describe", available, at);
  return NR_EXIT_OK;
}

static int check_metadata(const nr_container *c, nr_message *message) {
  const char *key;
  json_t *value;
  if (!json_is_object(c->metadata))
    return BAD("%s", "__metadata__ is no object, expected one of strings");
  json_object_foreach(c->metadata, key,
                      value) if (!json_is_string(value)) return BAD("__metadata__ '%.80s' is no string", key);
  return NR_EXIT_OK;
}

static int read_tensors(nr_container *c, unsigned char *data, uint64_t available, range *ranges, nr_message *message) {
  const char *key;
  json_t *entry;
  json_object_foreach(c->header, key, entry) {
    if (!strcmp(key, "__metadata__"))
      continue;
    nr_tensor *tensor = &c->tensors[c->num_tensors];
    tensor->name = key;
    int code = read_tensor(c, tensor, entry, available, &ranges[c->num_tensors], message);
    if (code)
      return code;
    tensor->data = data + ranges[c->num_tensors].begin;
    c->num_tensors++;
  }
  return check_cover(c, ranges, c->num_tensors, available, message);
}

/* Files may have tensors anywhere; elements are read in place, so those at odd addresses get a copy. */
static int align_tensors(nr_container *c, nr_message *message) {
  for (size_t i = 0; i < c->num_tensors; i++) {
    nr_tensor *tensor = &c->tensors[i];
    if (tensor->dtype == NR_FOREIGN_DTYPE || (uintptr_t)tensor->data % nr_dtype_size((nr_dtype)tensor->dtype) == 0)
      continue;
    void *copy = malloc(tensor->size ? tensor->size : 1);
    if (!copy)
      return nr_refuse(message, NR_EXIT_RUN, "%s: " NAME ": out of memory for an aligned copy", c->path, tensor->name);
    memcpy(copy, tensor->data, tensor->size);
    tensor->data = copy;
    tensor->copied = true;
  }
  return NR_EXIT_OK;
}

static int parse_header(nr_container *c, const unsigned char *bytes, size_t size, nr_message *message) {
  uint64_t length = 0;
  if (size < LENGTH_BYTES)
    return BAD("%zu bytes, expected a safetensors file, which has at least %d", size, LENGTH_BYTES);
  for (int i = LENGTH_BYTES; i-- > 0;)
    length = length << 8 | bytes[i];
  if (length > NR_MAX_HEADER)
    return BAD("a header of %" PRIu64 " bytes, expected at most %d; is it a safetensors file?", length, NR_MAX_HEADER);
  if (length > size - LENGTH_BYTES)
    return BAD("truncated: a header of %" PRIu64 " bytes in a file of %zu", length, size);
  const char *text = (const char *)bytes + LENGTH_BYTES;
  if (length == 0 || *text != '{')
    return BAD("the header does not begin with '%c'", '{');
  json_error_t error;
  c->header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
  if (!c->header)
    return BAD("header: %.120s at byte %d", error.text, error.position);
  size_t count = json_object_size(c->header);
  range *ranges = calloc(count + 1, sizeof *ranges);
  c->tensors = calloc(count + 1, sizeof *c->tensors);
  c->metadata = json_incref(json_object_get(c->header, "__metadata__"));
  if (!c->metadata)
    c->metadata = json_object();
  int code = NR_EXIT_OK;
  if (!ranges || !c->tensors || !c->metadata)
    code = nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", c->path);
  unsigned char *data;
  memcpy(&data, &(const unsigned char *){bytes + LENGTH_BYTES + length}, sizeof data);
  if (!code)
    code = check_metadata(c, message);
  if (!code)
    code = read_tensors(c, data, size - LENGTH_BYTES - length, ranges, message);
  if (!code)
    code = align_tensors(c, message);
  free(ranges);
  return code;
}

int nr_container_parse(nr_container *c, const void *bytes, size_t size, const char *path, nr_message *message) {
  *c = (nr_container){.path = strdup(path)};
  int code = c->path ? parse_header(c, bytes, size, message) : nr_refuse(message, NR_EXIT_RUN, "out of memory");
  if (code)
    nr_container_close(c);
  return code;
}

void nr_container_close(nr_container *c) {
  if (c->temporary)
    unlink(c->temporary);
  if (c->map)
    munmap(c->map, c->map_size);
  for (size_t i = 0; i < c->num_tensors; i++)
    if (c->tensors[i].copied)
      free(c->tensors[i].data);
  free(c->tensors);
  free(c->temporary);
  free(c->path);
  json_decref(c->metadata);
  json_decref(c->header);
  *c = (nr_container){0};
}

void nr_container_release(const void *data, size_t size) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  uintptr_t first = ((uintptr_t)data + page - 1) / page * page, last = ((uintptr_t)data + size) / page * page;
  if (last > first)
    madvise((void *)first, last - first, MADV_DONTNEED);
}
