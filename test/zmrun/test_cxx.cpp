/* Every form of new and delete, on the libc's malloc() and under zmrun. */

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

namespace
{

struct alignas(256) Wide {
    char bytes[1000];
};

bool failed = false;

void check(bool condition, const char *what)
{
    if (!condition) {
        std::fprintf(stderr, "failed: %s\n", what);
        failed = true;
    }
}

template <class T> void all_forms()
{
    T *one = new T, *quiet = new (std::nothrow) T, *some = new T[7], *quiet_some = new (std::nothrow) T[7];
    check(reinterpret_cast<std::uintptr_t>(one) % alignof(T) == 0, "new is aligned");
    check(reinterpret_cast<std::uintptr_t>(quiet) % alignof(T) == 0, "new (nothrow) is aligned");
    check(reinterpret_cast<std::uintptr_t>(some) % alignof(T) == 0, "new[] is aligned");
    delete one;
    delete quiet;
    delete[] some;
    delete[] quiet_some;
    T *block = static_cast<T *>(::operator new(sizeof(T), std::align_val_t(alignof(T))));
    ::operator delete(block, sizeof(T), std::align_val_t(alignof(T)));
}

void use_threads()
{
    std::vector<std::thread> threads;
    std::vector<std::string> words[4];
    for (auto &list : words)
        threads.emplace_back([&list] {
            for (int i = 0; i < 10000; i++)
                list.push_back("a word that is too long for the string itself " + std::to_string(i));
        });
    for (auto &thread : threads)
        thread.join();
    for (auto &list : words)
        check(list.size() == 10000 && list[77].back() == '7', "what threads have allocated is there");
}

} // namespace

int main()
{
    all_forms<int>();
    all_forms<std::string>();
    all_forms<Wide>();
    use_threads();
    volatile std::size_t huge = PTRDIFF_MAX;
    bool thrown = false;
    try {
        ::operator delete(::operator new(huge));
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    check(thrown, "new throws");
    check(::operator new(huge, std::nothrow) == nullptr, "new (nothrow) does not");
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
