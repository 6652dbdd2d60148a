/* Attaches to the segment NAME as the data plane does, and prints "text|found|expected" (text "ok" when it may be used). */
#include "shm_layout/access.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

int main(int argc, char **argv)
{
    struct stat status;
    int fd = argc > 1 ? shm_open(argv[1], O_RDONLY, 0) : -1;
    if (fd < 0 || fstat(fd, &status) != 0)
        return 2;
    void *base = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return 2;
    struct segment_mismatch mismatch = { 0, 0 };
    int error = segment_check(base, (uint64_t)status.st_size, &mismatch);
    printf("%s|%llu|%llu\n", error == 0 ? "ok" : segment_strerror(error), (unsigned long long)mismatch.found,
           (unsigned long long)mismatch.expected);
    return error == 0 ? 0 : 1;
}
