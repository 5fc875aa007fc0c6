#include "acl/acl_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "acl/acl_base.h"
#include "base/verbose.h"

static _Thread_local char text[NR_ACL_TEXT];      /* of the last failure, "" if none */
static _Thread_local char read_text[NR_ACL_TEXT]; /* what aclGetRecentErrMsg returned last */

int nr_acl_fail(int code, const char *format, ...) {
  char formatted[NR_ACL_TEXT]; /* an argument may be the text itself */
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(formatted, sizeof formatted, format, arguments);
  va_end(arguments);
  memcpy(text, formatted, sizeof text);
  if (nr_verbose() >= NR_VERBOSE_ERROR)
    nr_say("%d: %s", code, text);
  return code;
}

void nr_acl_take_text(char *taken) {
  strcpy(taken, text);
  text[0] = 0;
}

void nr_acl_put_text(const char *taken) { strcpy(text, taken); }

const char *aclGetRecentErrMsg(void) {
  if (text[0] == 0)
    return NULL;
  nr_acl_take_text(read_text);
  return read_text;
}
