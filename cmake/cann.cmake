# The link names of CANN: lib/cann/lib{ascendcl,nnopbase,opapi}.so.
#
# A program for CANN, source or binary, must find its functions behind these names although they live in libnormrope.so.
# A linker takes symbols only from the libraries that it is told about, and a loader wants real ELF files with these
# SONAMEs; so each is a *filter* library (DT_FILTER, ld --filter): it defines the names for the linker, and the loader
# answers every lookup from libnormrope.so.0 in the folder above. The names are those that libnormrope.so exports and
# the headers of that library declare.
foreach(pair IN ITEMS ascendcl=acl nnopbase=aclnn opapi=aclnnop)
  string(REGEX MATCH "^(.*)=(.*)$" pair ${pair})
  set(name ${CMAKE_MATCH_1})
  set(folder ${PROJECT_SOURCE_DIR}/include/${CMAKE_MATCH_2})
  file(GLOB headers CONFIGURE_DEPENDS ${folder}/*.h)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/cann_${name}.c)
  add_custom_command(OUTPUT ${source}
    COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DLIBRARY=$<TARGET_FILE:normrope> -DHEADERS=${folder} -DOUTPUT=${source}
      -P ${PROJECT_SOURCE_DIR}/cmake/cann_names.cmake
    DEPENDS normrope ${headers} ${PROJECT_SOURCE_DIR}/cmake/cann_names.cmake
    COMMENT "Names of lib${name}.so" VERBATIM)
  add_library(normrope_${name} SHARED ${source})
  set_target_properties(normrope_${name} PROPERTIES
    OUTPUT_NAME ${name}
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_LIBRARY_OUTPUT_DIRECTORY}/cann
    C_VISIBILITY_PRESET default
    BUILD_WITH_INSTALL_RPATH ON
    INSTALL_RPATH "$ORIGIN/..")
  target_link_libraries(normrope_${name} PRIVATE normrope)
  target_link_options(normrope_${name} PRIVATE "LINKER:--no-as-needed"
    "LINKER:--filter=$<TARGET_SONAME_FILE_NAME:normrope>")
endforeach()
