#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { MAX_OPTIONS = 48, KEY_HELP = 0x10000, HELP_COLUMN = 26 };

int nr_refuse(nr_message *message, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message->text, sizeof message->text, format, arguments);
  va_end(arguments);
  return code;
}

void nr_complain(const char *text) {
  fputs("normrope: ", stderr);
  for (; *text; text++)
    fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, stderr);
  fputc('\n', stderr);
}

int nr_usage(const nr_command *command, const char *format, ...) {
  nr_message message;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message.text, sizeof message.text, format, arguments);
  va_end(arguments);
  nr_complain(message.text);
  fprintf(stderr, "Try 'normrope %s --help'.\n", command->name);
  return NR_EXIT_USAGE;
}

static void print_help(const nr_command *command) {
  printf("Usage: normrope %s %s\n%s\n\nOptions:\n", command->name, command->arguments, command->summary);
  for (const nr_option *o = command->options;; o++) {
    static const nr_option help = {"help", 'h', NULL, "print this and exit"};
    const nr_option *row = o->name ? o : &help;
    int width = row->key < 128 ? printf("  -%c, --%s", row->key, row->name) : printf("      --%s", row->name);
    if (row->argument)
      width += printf(" %s", row->argument);
    printf("%*s%s\n", width < HELP_COLUMN ? HELP_COLUMN - width : 2, "", row->help);
    if (!o->name)
      break;
  }
  if (command->notes)
    printf("\n%s", command->notes);
}

int nr_next_option(const nr_command *command, int argc, char **argv) {
  struct option longs[MAX_OPTIONS + 2];
  char shorts[2 * MAX_OPTIONS + 4] = ":h";
  size_t n = 0, letters = 2;
  for (const nr_option *o = command->options; o->name && n < MAX_OPTIONS; o++, n++) {
    longs[n] = (struct option){o->name, o->argument ? required_argument : no_argument, NULL, o->key};
    if (o->key < 128) {
      shorts[letters++] = (char)o->key;
      if (o->argument)
        shorts[letters++] = ':';
    }
  }
  shorts[letters] = 0;
  longs[n] = (struct option){"help", no_argument, NULL, KEY_HELP};
  longs[n + 1] = (struct option){NULL, 0, NULL, 0};
  opterr = 0;
  int key = getopt_long(argc, argv, shorts, longs, NULL);
  if (key == -1)
    return NR_OPTION_END;
  if (key == KEY_HELP || key == 'h') {
    print_help(command);
    return NR_OPTION_HELP;
  }
  if (key == ':' || key == '?') {
    const char *what = key == ':' ? "needs an argument" : "is not an option, or not a complete one";
    if (optopt > 0 && optopt < 128 && argv[optind - 1][1] != '-')
      nr_usage(command, "-%c %s", optopt, what);
    else
      nr_usage(command, "%s %s", argv[optind - 1], what);
    return NR_OPTION_BAD;
  }
  return key;
}

int nr_unexpected(const nr_command *command, int key, const char *value, const char *format, ...) {
  char what[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  const nr_option *o = command->options;
  while (o->key != key)
    o++;
  return nr_usage(command, "--%s %.200s, expected %s", o->name, value, what);
}

bool nr_parse_integer(const char *text, int64_t low, int64_t high, int64_t *value) {
  char *end;
  if (!((*text >= '0' && *text <= '9') || (*text == '-' && text[1] >= '0' && text[1] <= '9')))
    return false;
  errno = 0;
  long long number = strtoll(text, &end, 10);
  if (errno || *end || number < low || number > high)
    return false;
  *value = number;
  return true;
}

bool nr_parse_number(const char *text, double *value) {
  char *end;
  if (!((*text >= '0' && *text <= '9') || *text == '.'))
    return false;
  double number = strtod(text, &end);
  if (*end || end == text || !isfinite(number))
    return false;
  *value = number;
  return true;
}

double nr_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

nr_progress nr_progress_start(const char *what, double total, bool force) {
  double now = nr_seconds();
  bool enabled = force || isatty(STDERR_FILENO);
  return (nr_progress){.what = what, .total = total, .started = now, .shown = now, .enabled = enabled};
}

void nr_progress_add(nr_progress *progress, double amount) {
  progress->done += amount;
  if (!progress->enabled)
    return;
  double now = nr_seconds();
  if (now - progress->started < 1 || now - progress->shown < 0.2)
    return;
  double share = progress->total > 0 ? 100 * progress->done / progress->total : 100;
  fprintf(stderr, "\rnormrope: %s %3.0f%%  %.0f s ", progress->what, fmin(share, 100), now - progress->started);
  fflush(stderr);
  progress->shown = now;
  progress->drawn = true;
}

void nr_progress_end(nr_progress *progress) {
  if (progress->drawn)
    fputs("\r\033[K", stderr);
  progress->drawn = false;
}
