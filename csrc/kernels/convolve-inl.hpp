// The convolution entries of the table: each layer directly or by Winograd's minimal filtering.

inline void convolve(const ConvView& conv, const float* in, float* scratch, float* out, int lanes) {
    if (conv.winograd && conv.products() == 4)
        winograd<4>(conv, in, scratch, out, lanes);
    else if (conv.winograd)
        winograd<3>(conv, in, scratch, out, lanes);
    else
        convolve_directly(conv, in, out, lanes);
}

inline void convolve_frame(const ConvView& conv, const float* in, float* scratch, float* out) {
    if (conv.winograd && conv.products() == 4)
        winograd_frame<4>(conv, in, scratch, out);
    else if (conv.winograd)
        winograd_frame<3>(conv, in, scratch, out);
    else
        convolve_frame_directly(conv, in, out);
}
