# A wheel (pyproject.toml) has the shared library and nothing else, under its SONAME, for a wheel holds no links.
if(SKBUILD)
  set_target_properties(normrope PROPERTIES VERSION ${PROJECT_VERSION_MAJOR})
  install(TARGETS normrope LIBRARY DESTINATION lib NAMELINK_SKIP)
  return()
endif()

include(CMakePackageConfigHelpers)

install(TARGETS normrope normrope_static EXPORT normrope
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS normrope_ascendcl normrope_nnopbase normrope_opapi LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/cann)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")

if(NORMROPE_BUILD_CLI)
  file(RELATIVE_PATH libraries_from_bin ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
  set_target_properties(normrope-cli PROPERTIES INSTALL_RPATH "$ORIGIN/${libraries_from_bin}")
  install(TARGETS normrope-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES docs/normrope.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 OPTIONAL)
endif()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/normrope)
install(EXPORT normrope FILE normropeTargets.cmake NAMESPACE normrope:: DESTINATION ${package})
configure_package_config_file(cmake/normropeConfig.cmake.in ${PROJECT_BINARY_DIR}/normropeConfig.cmake
  INSTALL_DESTINATION ${package})
# While the major version is 0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/normropeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/normropeConfig.cmake ${PROJECT_BINARY_DIR}/normropeConfigVersion.cmake
  DESTINATION ${package})

# Paths relative to the .pc file: the prefix is only known when installing.
set(pkgconfig ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH pc_prefix ${pkgconfig} ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" pc_prefix ${pc_prefix})
file(RELATIVE_PATH pc_libdir ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
file(RELATIVE_PATH pc_includedir ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
list(TRANSFORM NR_SYSTEM_LIBRARIES REPLACE "^([^/].*)$" "-l\\1" OUTPUT_VARIABLE pc_private) # paths stay as they are
list(JOIN pc_private " " pc_private)
configure_file(cmake/normrope.pc.in normrope.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/normrope.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
