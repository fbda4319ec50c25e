/* Maps a file where its addresses are right, calls a kernel's driver with the nine numbers at its start, and writes back
   what has changed. call FILE ADDRESS SIZE; the driver's name is -DDRIVER. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

int32_t DRIVER(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

int main(int count, char **text) {
    if (count != 4) return 100;
    void *address = (void *)strtoull(text[2], NULL, 0);
    int file = open(text[1], O_RDWR);
    int64_t *n = mmap(address, strtoull(text[3], NULL, 0), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (n != address) return 101;
    return DRIVER(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]) ? 102 : 0;
}
