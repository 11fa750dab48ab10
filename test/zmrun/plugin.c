/* A library that is opened, with more thread-local storage than the loader has in reserve for such. */

int touch_storage(void);

static _Thread_local char storage[200000] = {42};

int touch_storage(void)
{
    storage[sizeof(storage) - 1]++;
    return storage[0];
}
