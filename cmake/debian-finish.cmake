# cpack runs this with its variables twice: when the files of the packages are in place, and when the packages are made.

function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
    if(NOT status EQUAL 0)
        message(FATAL_ERROR "${ARGN}: ${status}")
    endif()
endfunction()

# ---------------------------------------------------------------- the files (Debian Policy, chapters 8, 10 and 12)

function(finish_files component package)
    set(root ${CPACK_TEMPORARY_INSTALL_DIRECTORY}/${component}/usr)
    set(documents ${root}/share/doc/${package})
    if(EXISTS ${root}/share/doc/zmalloc)
        file(RENAME ${root}/share/doc/zmalloc ${documents})
        file(REMOVE ${documents}/LICENSE ${documents}/CHANGELOG.md)
    endif()

    get_filename_component(source ${CPACK_RESOURCE_FILE_LICENSE} DIRECTORY)
    configure_file(${source}/LICENSE ${documents}/copyright COPYONLY)
    configure_file(${source}/CHANGELOG.md ${documents}/changelog COPYONLY)
    string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC) # SOURCE_DATE_EPOCH where that is set
    file(WRITE ${documents}/changelog.Debian
        "zmalloc (${CPACK_PACKAGE_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}) unstable; urgency=medium\n\n"
        "  * Version ${CPACK_PACKAGE_VERSION}: changelog.gz has what is new.\n\n"
        " -- ${CPACK_DEBIAN_PACKAGE_MAINTAINER}  ${date}\n")

    file(GLOB compressed ${documents}/changelog* ${root}/share/man/man3/*.3
        ${root}/share/man/man1/*.1)
    run(gzip --best --no-name ${compressed})
    file(GLOB_RECURSE archives ${root}/lib/*.a)
    file(GLOB_RECURSE libraries ${root}/lib/*.so.* ${root}/lib/*-preload*.so)
    file(GLOB programs ${root}/bin/*)
    foreach(library IN LISTS archives)
        run(strip --strip-debug --enable-deterministic-archives --remove-section=.comment ${library})
    endforeach()
    foreach(library IN LISTS libraries programs)
        if(NOT IS_SYMLINK ${library})
            run(strip --strip-unneeded --remove-section=.comment --remove-section=.note ${library})
        endif()
    endforeach()
    run(chmod -R u=rwX,go=rX ${root}) # whatever the umask is
endfunction()

# ---------------------------------------------------------------- the control files

# What CPack does not do: Multi-Arch, and a trigger instead of scripts that call ldconfig.
function(finish_control package)
    set(unpacked ${package}.unpacked)
    run(dpkg-deb --raw-extract ${package} ${unpacked})
    file(READ ${unpacked}/DEBIAN/control control)
    string(STRIP "${control}" control)
    # zmrun is a program, of which there can be one: its library is for programs of the same architecture.
    if(NOT "\n${control}\n" MATCHES "\nPackage: zmrun\n")
        string(APPEND control "\nMulti-Arch: same")
    endif()
    file(WRITE ${unpacked}/DEBIAN/control "${control}\n")
    if(EXISTS ${unpacked}/DEBIAN/shlibs)
        file(REMOVE ${unpacked}/DEBIAN/postinst ${unpacked}/DEBIAN/postrm)
        file(WRITE ${unpacked}/DEBIAN/triggers "activate-noawait ldconfig\n")
    endif()
    run(chmod -R u=rwX,go=rX ${unpacked})
    run(dpkg-deb --root-owner-group -Z${CPACK_DEBIAN_COMPRESSION_TYPE} --build ${unpacked} ${package})
    file(REMOVE_RECURSE ${unpacked})
endfunction()

if(CPACK_PACKAGE_FILES)
    foreach(package IN LISTS CPACK_PACKAGE_FILES)
        finish_control(${package})
    endforeach()
else()
    foreach(component IN LISTS CPACK_COMPONENTS_ALL)
        string(TOUPPER ${component} COMPONENT)
        finish_files(${component} ${CPACK_DEBIAN_${COMPONENT}_PACKAGE_NAME})
    endforeach()
endif()
