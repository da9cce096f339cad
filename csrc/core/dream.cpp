// dream
namespace worldmodels {}
