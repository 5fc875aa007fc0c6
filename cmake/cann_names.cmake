# Writes OUTPUT, C source that defines every function that LIBRARY exports (told by NM) and a header in the folder
# HEADERS declares. See cann.cmake.
execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE table COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL " T acl[A-Za-z0-9_]+" names "${table}")
list(TRANSFORM names REPLACE " T " "")
file(GLOB headers ${HEADERS}/*.h)
set(declarations "")
foreach(header IN LISTS headers)
  file(READ ${header} text)
  string(APPEND declarations "${text}")
endforeach()

set(code "/* The body never runs: the loader finds libnormrope's first. A loader without filters stops here. */\n")
foreach(name IN LISTS names)
  if(declarations MATCHES "[^A-Za-z0-9_]${name}\\(")
    string(APPEND code "void ${name}(void);\nvoid ${name}(void) { __builtin_trap(); }\n")
  endif()
endforeach()
file(WRITE ${OUTPUT} "${code}")
