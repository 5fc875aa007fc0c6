/* The files under a container: mapping one to read, and writing one that nobody sees before it is complete. */
#define _GNU_SOURCE /* asprintf */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/safetensors.h"

enum { DATA_ALIGNMENT = 64 };

int nr_container_open(nr_container *c, const char *path, nr_message *message) {
  struct stat status;
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0)
    return nr_refuse(message, NR_EXIT_FILE, "%s: %s", path, strerror(errno));
  if (fstat(file, &status) || !S_ISREG(status.st_mode)) {
    close(file);
    return nr_refuse(message, NR_EXIT_FILE, "%s: not a regular file", path);
  }
  size_t size = (size_t)status.st_size;
  void *map = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0) : NULL;
  int error = errno;
  close(file);
  if (map == MAP_FAILED)
    return nr_refuse(message, NR_EXIT_RUN, "%s: cannot map: %s", path, strerror(error));
  int code = nr_container_parse(c, map, size, path, message);
  if (code && map)
    munmap(map, size);
  if (!code) {
    c->map = map;
    c->map_size = size;
  }
  return code;
}

/* The temporary file in the making, for the handler. One command writes one file at a time. */
static char pending[4096];

static void remove_pending(int number) {
  if (*pending)
    unlink(pending);
  signal(number, SIG_DFL);
  raise(number);
}

/* SIGBUS is among them: that is what a full disk or an input cut short meanwhile means to a mapping. */
static void guard_pending(const char *path) {
  static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGBUS};
  size_t length = strlen(path);
  *pending = 0;
  if (length >= sizeof pending)
    return;
  memcpy(pending + 1, path + 1, length);
  *pending = *path;
  struct sigaction action = {.sa_handler = remove_pending}, old;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!sigaction(numbers[i], NULL, &old) && old.sa_handler == SIG_DFL)
      sigaction(numbers[i], &action, NULL);
}

static const char *dtype_code(int dtype) {
  static const char *const codes[] = {[NR_F32] = "F32", [NR_F16] = "F16", [NR_BF16] = "BF16", [NR_F64] = "F64"};
  return codes[dtype];
}

/* The header's text, padded so that the data is aligned; NULL without memory. c->tensors are in the order of the data.
 */
static char *write_header(nr_container *c, size_t *length) {
  uint64_t at = 0;
  json_t *header = json_object();
  int failed = json_object_size(c->metadata) ? json_object_set(header, "__metadata__", c->metadata) : 0;
  for (size_t i = 0; i < c->num_tensors && !failed; i++) {
    const nr_tensor *t = &c->tensors[i];
    json_t *shape = json_array();
    for (int d = 0; d < t->rank; d++)
      failed |= json_array_append_new(shape, json_integer(t->shape[d]));
    failed |= json_object_set_new(header, t->name,
                                  json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_code(t->dtype), "shape", shape,
                                            "data_offsets", (json_int_t)at, (json_int_t)(at + t->size)));
    at += t->size;
  }
  char *text = failed ? NULL : json_dumps(header, JSON_COMPACT);
  size_t used = text ? strlen(text) : 0;
  *length = (8 + used + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT - 8;
  char *padded = text ? malloc(*length) : NULL;
  if (padded) {
    memset(padded, ' ', *length);
    memcpy(padded, text, used);
  }
  free(text);
  c->header = header; /* owns the names */
  return padded;
}

/* Larger elements first, and otherwise as given: then every tensor is aligned without gaps. */
static bool order_tensors(nr_container *c, const nr_tensor *tensors, size_t count) {
  c->tensors = calloc(count + 1, sizeof *c->tensors);
  for (size_t size = 8; size && c->tensors; size /= 2)
    for (size_t i = 0; i < count; i++)
      if (nr_dtype_size((nr_dtype)tensors[i].dtype) == size) {
        nr_tensor *t = &c->tensors[c->num_tensors++];
        *t = tensors[i];
        if (!nr_tensor_measure(t))
          return false;
      }
  return c->tensors != NULL;
}

/* The real path of what is to be replaced, so that a symbolic link stays one; else the path itself. */
static char *target_of(const char *path) {
  char *real = realpath(path, NULL);
  return real ? real : strdup(path);
}

static int create_file(nr_container *c, const char *header, size_t length, nr_message *message) {
  uint64_t size = 8 + length;
  for (size_t i = 0; i < c->num_tensors; i++)
    if (__builtin_add_overflow(size, c->tensors[i].size, &size) || size > INT64_MAX / 2)
      return nr_refuse(message, NR_EXIT_RUN, "%s: the tensors are too large for a file", c->path);
  int file = mkstemp(c->temporary);
  if (file < 0) {
    int error = errno;
    free(c->temporary);
    c->temporary = NULL;
    return nr_refuse(message, NR_EXIT_RUN, "%s: cannot create: %s", c->path, strerror(error));
  }
  guard_pending(c->temporary);
  signal(SIGXFSZ, SIG_IGN); /* a size limit is an error like a full disk */
  mode_t mask = umask(0);
  umask(mask);
  /* Space is taken now: a full disk is an error here and a crash under a mapping. */
  int error = fchmod(file, 0666 & ~mask) ? errno : posix_fallocate(file, 0, (off_t)size);
  if (!error) {
    c->map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    c->map_size = size;
    error = c->map == MAP_FAILED ? errno : 0;
    if (error)
      c->map = NULL;
  }
  close(file);
  if (error)
    return nr_refuse(message, NR_EXIT_RUN, "%s: cannot write %llu bytes: %s", c->path, (unsigned long long)size,
                     strerror(error));
  unsigned char *bytes = c->map;
  for (int i = 0; i < 8; i++)
    bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
  memcpy(bytes + 8, header, length);
  bytes += 8 + length;
  for (size_t i = 0; i < c->num_tensors; bytes += c->tensors[i++].size)
    c->tensors[i].data = bytes;
  return NR_EXIT_OK;
}

/* The header's keys outlive the caller's names. */
static void own_names(nr_container *c) {
  for (size_t i = 0; i < c->num_tensors; i++)
    c->tensors[i].name = json_object_iter_key(json_object_iter_at(c->header, c->tensors[i].name));
}

int nr_container_create(nr_container *c, const char *path, const nr_tensor *tensors, size_t num_tensors,
                        json_t *metadata, nr_message *message) {
  *c = (nr_container){.path = target_of(path), .metadata = json_incref(metadata)};
  size_t length = 0;
  char *header = NULL;
  int code = NR_EXIT_OK;
  if (!c->path || asprintf(&c->temporary, "%s.XXXXXX", c->path) < 0) {
    c->temporary = NULL;
    code = nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", path);
  } else if (!order_tensors(c, tensors, num_tensors) || !(header = write_header(c, &length))) {
    free(c->temporary); /* names no file yet */
    c->temporary = NULL;
    code = nr_refuse(message, NR_EXIT_RUN, "%s: the tensors are too large, or memory too small", path);
  } else {
    code = create_file(c, header, length, message);
  }
  if (!code)
    own_names(c);
  free(header);
  if (code)
    nr_container_close(c);
  return code;
}

int nr_container_commit(nr_container *c, nr_message *message) {
  if (rename(c->temporary, c->path))
    return nr_refuse(message, NR_EXIT_RUN, "%s: cannot rename: %s", c->path, strerror(errno));
  *pending = 0;
  free(c->temporary);
  c->temporary = NULL;
  return NR_EXIT_OK;
}

int nr_check_output(const char *output, const char *const *inputs, int num_inputs, nr_message *message) {
  struct stat out, in;
  if (stat(output, &out))
    return NR_EXIT_OK;
  if (!S_ISREG(out.st_mode))
    return nr_refuse(message, NR_EXIT_USAGE, "%s: exists and is no regular file", output);
  for (int i = 0; i < num_inputs; i++)
    if (!stat(inputs[i], &in) && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
      return nr_refuse(message, NR_EXIT_USAGE, "%s: is the input; name another file for the output", output);
  return NR_EXIT_OK;
}
