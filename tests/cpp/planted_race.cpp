// An intended data race: its test passes when the thread sanitizer reports it.
int main() {
    int count = 0;
#pragma omp parallel num_threads(2)
    ++count;
    return count == 0 ? 1 : 0;
}
