/* A library in C++ that a program in C loads with its own dlopen(): the operators that it finds are those that the
 * program has already, if any. */

static char *volatile kept;

extern "C" int touch_storage();

extern "C" int touch_storage()
{
    kept = new char[100000];
    return 42;
}
