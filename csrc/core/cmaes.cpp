// cmaes
namespace worldmodels {}
