# cmake -D INPUT=FILE -D OUTPUT=FILE.c -D NAME=IDENTIFIER -P embed.cmake: the bytes of a file as a C array, NAME, and how
# many they are, NAME_size. A line /*include PATH*/ stands for another file, named from where the first one is.

file(READ ${INPUT} text)
get_filename_component(directory ${INPUT} DIRECTORY)
string(REGEX MATCHALL "/\\*include [^*]+\\*/\n" includes "${text}")
foreach(include IN LISTS includes)
    string(REGEX REPLACE "^/\\*include (.+)\\*/\n$" "\\1" path "${include}")
    file(READ ${directory}/${path} included)
    string(REPLACE "${include}" "${included}" text "${text}")
endforeach()
file(WRITE ${OUTPUT} "${text}")
file(READ ${OUTPUT} bytes HEX)
string(REGEX REPLACE "................................" "\\0\n    " bytes "${bytes}")
string(REGEX REPLACE "[0-9a-f][0-9a-f]" "0x\\0," bytes "${bytes}")
file(WRITE ${OUTPUT} "#include <stddef.h>

extern const unsigned char ${NAME}[];
extern const size_t ${NAME}_size;

const unsigned char ${NAME}[] = {
    ${bytes}
};
const size_t ${NAME}_size = sizeof ${NAME};
")
