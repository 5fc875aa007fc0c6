/* normrope: the command line. Commands are rows of one table; each lives in command_NAME.c. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "normrope.h"

static const nr_command *const commands[] = {&nr_command_info,     &nr_command_make_case, &nr_command_forward,
                                             &nr_command_backward, &nr_command_check,     &nr_command_gradcheck,
                                             &nr_command_bench};

enum { NUM_COMMANDS = sizeof commands / sizeof *commands };

static void print_commands(FILE *out) {
  fputs("Usage: normrope COMMAND [ARGUMENT ...]\n\nCommands:\n", out);
  for (int i = 0; i < NUM_COMMANDS; i++)
    fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
  fputs("\n'normrope COMMAND --help' explains one. 'normrope --version' prints the version.\n"
        "Exit status: 0 good, 1 a check failed, 2 usage, 3 bad input file, 4 the run failed.\n",
        out);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    print_commands(stderr);
    return NR_EXIT_USAGE;
  }
  int code = -1;
  if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))
    code = printf("normrope %s\n", nr_version()) < 0 ? NR_EXIT_RUN : NR_EXIT_OK;
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
    print_commands(stdout);
    code = NR_EXIT_OK;
  }
  for (int i = 0; i < NUM_COMMANDS; i++)
    if (!strcmp(argv[1], commands[i]->name))
      code = commands[i]->run(commands[i], argc - 1, argv + 1);
  if (code < 0) {
    nr_message message;
    nr_refuse(&message, 0, "%s: no such command", argv[1]);
    nr_complain(message.text);
    fputs("Try 'normrope --help'.\n", stderr);
    return NR_EXIT_USAGE;
  }
  if (fflush(stdout) || ferror(stdout)) {
    nr_complain("standard output: cannot write");
    return NR_EXIT_RUN;
  }
  return code;
}
