// Finds OpenBLAS's thread setting among the loaded libraries, as threadpoolctl does.
#include "core/lapack_threads.hpp"

#include <pthread.h>

#include <mutex>
#include <string>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace worldmodels {
namespace {

struct Library {
    void (*set)(int);
    int (*get)();
    int before;
};

#if defined(__linux__)
// Collects paths. It must not call dlopen: that takes the loader's locks in the other order, and an import in
// another thread would wait forever.
int add_path(dl_phdr_info* info, std::size_t, void* paths) {
    const std::string path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
    if (path.find("openblas") != std::string::npos)
        static_cast<std::vector<std::string>*>(paths)->push_back(path);
    return 0;
}

void add_library(const std::string& path, std::vector<Library>& found) {
    void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return;
    // SciPy's wheels prefix the names. NumPy's OpenBLAS, with 64-bit integers, has other names and is
    // skipped.
    for (const std::string prefix : {"scipy_openblas_", "openblas_"}) {
        void* set = dlsym(library, (prefix + "set_num_threads").c_str());
        void* get = dlsym(library, (prefix + "get_num_threads").c_str());
        if (set == nullptr || get == nullptr) continue;
        found.push_back({reinterpret_cast<void (*)(int)>(set), reinterpret_cast<int (*)()>(get), 1});
        break;
    }
    dlclose(library);  // drops the reference taken above; the library stays loaded
}
#endif

std::mutex mutex;
int holders = 0;
// A fork waits for the mutex; the child starts without holders.
[[maybe_unused]] const int forks = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); },
                                                  [] {
                                                      holders = 0;
                                                      mutex.unlock();
                                                  });
std::vector<Library>& libraries() {
    static std::vector<Library> found = [] {
        std::vector<Library> all;
#if defined(__linux__)
        std::vector<std::string> paths;
        dl_iterate_phdr(add_path, &paths);
        for (const std::string& path : paths) add_library(path, all);
#endif
        return all;
    }();
    return found;
}

}  // namespace

SingleLapackThread::SingleLapackThread() {
    const std::lock_guard lock(mutex);
    if (holders++ > 0) return;
    for (Library& library : libraries()) {
        library.before = library.get();
        library.set(1);
    }
}

SingleLapackThread::~SingleLapackThread() {
    const std::lock_guard lock(mutex);
    if (--holders > 0) return;
    for (const Library& library : libraries()) library.set(library.before);
}

}  // namespace worldmodels
