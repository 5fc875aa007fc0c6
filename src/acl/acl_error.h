/* The calling thread's ACL error text, which aclGetRecentErrMsg hands out. */
#ifndef NR_ACL_ACL_ERROR_H
#define NR_ACL_ACL_ERROR_H

enum { NR_ACL_TEXT = 1024 }; /* bytes of a text with its final zero; longer ones are cut */

/* Sets the calling thread's text and returns `code`, so that a refusal is one line. Works for aclError and aclnnStatus
   alike. With NORMROPE_VERBOSE=error or more the text also goes to standard error. */
int nr_acl_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Moves the calling thread's text into `text` [NR_ACL_TEXT], "" if there is none. */
void nr_acl_take_text(char *text);

/* Sets the calling thread's text to one that was taken. */
void nr_acl_put_text(const char *text);

#endif
