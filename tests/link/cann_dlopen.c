/* What a plug-in or another language does: dlopen one of CANN's libraries and ask it for a function. The function must
   be libnormrope's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
  if (argc != 3) {
    printf("usage: %s LIBRARY FUNCTION\n", argv[0]);
    return 2;
  }
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  void *function = library ? dlsym(library, argv[2]) : NULL;
  Dl_info info;
  if (!function || !dladdr(function, &info)) {
    puts(dlerror());
    return 1;
  }
  printf("%s: %s is in %s\n", argv[1], argv[2], info.dli_fname);
  return strstr(info.dli_fname, "/libnormrope.so") == NULL || dlclose(library) != 0;
}
